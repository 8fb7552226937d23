//! One call, read letter by letter: a JSON object with a name and arguments, which are passed on as they come.

/// What a scanner has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The object goes on.
    More,
    /// It is complete.
    Done,
    /// It is no call.
    NoCall,
}

/// A call as far as it is known.
pub struct CallScanner {
    place: Place,
    /// The string or key that is being read, escapes as they stand.
    word: String,
    key: String,
    name: Option<String>,
    /// Arguments that are not taken yet.
    arguments: String,
    has_arguments: bool,
    nesting: Nesting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the object.
    Start,
    /// Before a key, or the object's end.
    Key,
    /// In a key.
    InKey,
    /// After a key.
    Colon,
    /// Before a value.
    Value,
    /// In a string that has a meaning here.
    InWord,
    /// In a value that is only walked through; true where it is the arguments.
    InValue(bool),
    /// After a value.
    Comma,
    Done,
}

/// Where in a value a letter stands.
#[derive(Clone, Copy, Debug, Default)]
struct Nesting {
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl Nesting {
    /// Takes a letter; true where it closes what was open.
    fn closes(&mut self, letter: char) -> bool {
        match letter {
            _ if self.escaped => self.escaped = false,
            '\\' if self.quoted => self.escaped = true,
            '"' => {
                self.quoted = !self.quoted;
                return !self.quoted && self.depth == 0;
            }
            _ if self.quoted => {}
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// Longest name, key or argument text that is kept before a call is known to be one.
const LONGEST_WORD: usize = 64 << 10;

impl CallScanner {
    /// Before an object.
    pub fn new() -> Self {
        Self {
            place: Place::Start,
            word: String::new(),
            key: String::new(),
            name: None,
            arguments: String::new(),
            has_arguments: false,
            nesting: Nesting::default(),
        }
    }

    /// The function's name, once it is known that arguments of it come.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref().filter(|_| self.has_arguments)
    }

    /// New text of the arguments.
    pub fn take_arguments(&mut self) -> String {
        std::mem::take(&mut self.arguments)
    }

    /// Takes a letter.
    pub fn push(&mut self, letter: char) -> Progress {
        let is_space = letter.is_ascii_whitespace();
        self.place = match (self.place, letter) {
            (Place::Start | Place::Key | Place::Colon | Place::Value | Place::Comma, _) if is_space => {
                self.place
            }
            (Place::Start, '{') => Place::Key,
            (Place::Key, '"') => {
                self.word.clear();
                Place::InKey
            }
            (Place::Key | Place::Comma, '}') => return self.end(),
            (Place::InKey, _) => match self.string(letter) {
                None => Place::InKey,
                Some(Ok(key)) => {
                    self.key = key;
                    Place::Colon
                }
                Some(Err(())) => return Progress::NoCall,
            },
            (Place::Colon, ':') => Place::Value,
            (Place::Value, _) => match self.value(letter) {
                Some(place) => place,
                None => return Progress::NoCall,
            },
            (Place::InWord, _) => match self.string(letter) {
                None => Place::InWord,
                Some(Ok(text)) => {
                    if !self.take_word(text) {
                        return Progress::NoCall;
                    }
                    Place::Comma
                }
                Some(Err(())) => return Progress::NoCall,
            },
            (Place::InValue(is_arguments), _) => return self.walk(letter, is_arguments),
            (Place::Comma, ',') => Place::Key,
            _ => return Progress::NoCall,
        };
        Progress::More
    }

    /// A letter of a string; the string when it is complete.
    fn string(&mut self, letter: char) -> Option<Result<String, ()>> {
        match letter {
            _ if self.nesting.escaped => self.nesting.escaped = false,
            '\\' => self.nesting.escaped = true,
            '"' => {
                let text = serde_json::from_str(&format!("\"{}\"", self.word));
                return Some(text.map_err(|_| ()));
            }
            _ => {}
        }
        self.word.push(letter);
        (self.word.len() > LONGEST_WORD).then_some(Err(()))
    }

    /// The first letter of a value.
    fn value(&mut self, letter: char) -> Option<Place> {
        let is_arguments = matches!(self.key.as_str(), "arguments" | "parameters");
        if (is_arguments && self.has_arguments) || (self.key == "name" && self.name.is_some()) {
            return None;
        }
        match (letter, self.key.as_str()) {
            ('"', "name" | "arguments" | "parameters") => {
                self.word.clear();
                Some(Place::InWord)
            }
            (_, "name") => None,
            ('{', _) if is_arguments => {
                self.has_arguments = true;
                self.arguments.push('{');
                self.nesting = Nesting { depth: 1, ..Nesting::default() };
                Some(Place::InValue(true))
            }
            _ if is_arguments => None,
            (',' | '}' | ']' | ':', _) => None,
            _ => {
                self.nesting = Nesting::default();
                // A number or a word ends before the next comma or brace, which belongs to the object.
                self.nesting.closes(letter);
                Some(Place::InValue(false))
            }
        }
    }

    /// A string that is a name, or arguments written as text.
    fn take_word(&mut self, text: String) -> bool {
        if self.key == "name" {
            self.name = Some(text);
            return true;
        }
        self.has_arguments = true;
        self.arguments = text;
        matches!(serde_json::from_str(&self.arguments), Ok(serde_json::Value::Object(_)))
    }

    /// A letter within a value.
    fn walk(&mut self, letter: char, is_arguments: bool) -> Progress {
        let is_bare = self.nesting.depth == 0 && !self.nesting.quoted;
        if is_bare {
            match letter {
                ',' => self.place = Place::Key,
                '}' => return self.end(),
                _ => {}
            }
            return Progress::More;
        }
        if is_arguments {
            self.arguments.push(letter);
            if self.name.is_none() && self.arguments.len() > LONGEST_WORD {
                return Progress::NoCall;
            }
        }
        if self.nesting.closes(letter) {
            self.place = Place::Comma;
        }
        Progress::More
    }

    /// The object's end: a call where it has a name. One without arguments has none to give.
    fn end(&mut self) -> Progress {
        self.place = Place::Done;
        if self.name.is_none() {
            return Progress::NoCall;
        }
        if !self.has_arguments {
            self.has_arguments = true;
            self.arguments.push_str("{}");
        }
        Progress::Done
    }
}
