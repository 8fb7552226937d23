//! Values as JSON or YAML on the standard output.

use std::io::Write;

use serde::Serialize;

use crate::cli::Format;
use crate::fault::Fault;

/// Text of a value.
///
/// # Errors
/// [`Fault`] for a value that cannot be written so.
pub fn text(format: Format, value: &impl Serialize) -> Result<String, Fault> {
    let failed = |error: String| Fault::new(format!("the output could not be written: {error}"));
    match format {
        Format::Json => serde_json::to_string_pretty(value).map_err(|error| failed(error.to_string())),
        // By way of JSON: the YAML writer knows less of serde's forms.
        Format::Yaml => {
            let value = serde_json::to_value(value).map_err(|error| failed(error.to_string()))?;
            serde_saphyr::to_string(&value).map_err(|error| failed(error.to_string()))
        }
    }
}

/// Prints text and a line's end; a reader that has gone away (`| head`) is no error.
///
/// # Errors
/// [`Fault`] where the output cannot be written.
pub fn print(text: &str) -> Result<(), Fault> {
    let mut out = std::io::stdout().lock();
    let written = out
        .write_all(text.trim_end().as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Fault::new(format!("the output could not be written: {error}")))
        }
        _ => Ok(()),
    }
}
