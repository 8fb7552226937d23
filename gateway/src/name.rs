//! A name that goes into logs and into the headers of one answer after the other: made once, and handed on at next to no cost.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use http::HeaderValue;

/// A name, as text and as a header.
#[derive(Clone, Default)]
pub struct Name(
    /// `None` is the empty name.
    Option<Arc<Forms>>,
);

struct Forms {
    text: Box<str>,
    /// `None` where the text cannot be one.
    header: Option<HeaderValue>,
}

impl Name {
    /// As text.
    pub fn as_str(&self) -> &str {
        self.0.as_ref().map_or("", |forms| &forms.text)
    }

    /// As a header, unless it cannot be one.
    pub fn header(&self) -> Option<&HeaderValue> {
        self.0.as_ref()?.header.as_ref()
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        let forms = || Forms { text: text.into(), header: HeaderValue::from_str(text).ok() };
        Self((!text.is_empty()).then(|| Arc::new(forms())))
    }
}

impl From<String> for Name {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Name {}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        *self.as_str() == *other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        *self.as_str() == **other
    }
}

impl PartialEq<String> for Name {
    fn eq(&self, other: &String) -> bool {
        *self.as_str() == **other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_its_text_and_a_header_where_it_can_be_one() {
        let name = Name::from("team/chat");
        assert_eq!(name, "team/chat");
        assert_eq!(format!("{name} {name:?} {}", name.len()), "team/chat \"team/chat\" 9");
        assert_eq!(name.header().map(HeaderValue::as_bytes), Some(b"team/chat".as_slice()));
        let odd = Name::from("two\nlines".to_owned());
        assert_eq!((odd.as_str(), odd.header()), ("two\nlines", None));
        assert_eq!(Name::default(), "");
    }
}
