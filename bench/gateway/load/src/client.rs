//! HTTP/1.1 over a blocking socket, as much of it as gateways answer with: a length or chunks, one answer at a time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// A request, as bytes.
#[derive(Clone)]
pub struct Request {
    address: SocketAddr,
    bytes: Vec<u8>,
    timeout: Duration,
}

impl Request {
    /// A chat completion with the body of a file.
    pub fn post(address: SocketAddr, body: &Path, timeout: Duration) -> anyhow::Result<Self> {
        let body =
            std::fs::read(body).with_context(|| format!("--body {} cannot be read", body.display()))?;
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             authorization: Bearer sk-bench\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        Ok(Self { address, bytes: [head.as_bytes(), &body].concat(), timeout })
    }

    /// Opens a connection.
    pub fn connect(&self) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect_timeout(&self.address, self.timeout)
            .with_context(|| format!("{} cannot be reached", self.address))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        Ok(Connection { stream, held: Vec::new() })
    }
}

/// A connection; what was read and belongs to nothing yet is held.
pub struct Connection {
    stream: TcpStream,
    held: Vec<u8>,
}

/// How an answer's end is known.
enum Framing {
    Length(usize),
    Chunks,
    Close,
}

/// The head of an answer, as far as it matters here.
struct Head {
    framing: Framing,
    close: bool,
}

impl Connection {
    /// Sends the request and reads the whole answer; true when the connection can be used again.
    pub fn ask(&mut self, request: &Request) -> anyhow::Result<bool> {
        self.stream_answer(request, |_, _| true)
    }

    /// Sends the request and hands every piece of the answer's body to `piece`, with the moment at which it was read, for as
    /// long as that says true. True when the connection can be used again.
    pub fn stream_answer(
        &mut self,
        request: &Request,
        mut piece: impl FnMut(&[u8], Instant) -> bool,
    ) -> anyhow::Result<bool> {
        self.stream.write_all(&request.bytes)?;
        let head = self.head()?;
        match head.framing {
            Framing::Length(mut left) => {
                while left > 0 {
                    if self.held.is_empty() {
                        self.fill()?;
                    }
                    let now = Instant::now();
                    let some = self.held.len().min(left);
                    let go_on = piece(&self.held[..some], now);
                    self.held.drain(..some);
                    left -= some;
                    if !go_on {
                        return Ok(false);
                    }
                }
                Ok(!head.close)
            }
            Framing::Chunks => Ok(self.chunks(piece)? && !head.close),
            Framing::Close => loop {
                if !self.held.is_empty() && !piece(&self.held, Instant::now()) {
                    return Ok(false);
                }
                self.held.clear();
                if self.fill().is_err() {
                    return Ok(false);
                }
            },
        }
    }

    fn chunks(&mut self, mut piece: impl FnMut(&[u8], Instant) -> bool) -> anyhow::Result<bool> {
        let mut now = Instant::now();
        loop {
            let line = loop {
                if let Some(end) = find(&self.held, b"\r\n") {
                    break end;
                }
                self.fill()?;
                now = Instant::now();
            };
            let size = std::str::from_utf8(&self.held[..line])?.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).context("a chunk's size")?;
            let whole = line + 2 + size + 2;
            while self.held.len() < whole {
                self.fill()?;
                now = Instant::now();
            }
            ensure!(self.held[whole - 2..whole] == *b"\r\n", "a chunk does not end where it says");
            let go_on = size == 0 || piece(&self.held[line + 2..whole - 2], now);
            self.held.drain(..whole);
            if size == 0 || !go_on {
                return Ok(size == 0);
            }
        }
    }

    fn head(&mut self) -> anyhow::Result<Head> {
        let end = loop {
            if let Some(end) = find(&self.held, b"\r\n\r\n") {
                break end;
            }
            self.fill()?;
        };
        let text = String::from_utf8_lossy(&self.held[..end]).to_ascii_lowercase();
        self.held.drain(..end + 4);
        let mut lines = text.split("\r\n");
        let status = lines.next().unwrap_or_default();
        ensure!(status.contains(" 200"), "the answer is {status}: {}", String::from_utf8_lossy(&self.held));
        let (mut framing, mut close) = (Framing::Close, false);
        for line in lines {
            match line.split_once(':').map(|(name, value)| (name, value.trim())) {
                Some(("content-length", value)) => framing = Framing::Length(value.parse()?),
                Some(("transfer-encoding", "chunked")) => framing = Framing::Chunks,
                Some(("connection", "close")) => close = true,
                _ => {}
            }
        }
        Ok(Head { framing, close })
    }

    fn fill(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let read = self.stream.read(&mut buffer)?;
        if read == 0 {
            bail!("the connection was closed in the middle of an answer");
        }
        self.held.extend_from_slice(&buffer[..read]);
        Ok(())
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
