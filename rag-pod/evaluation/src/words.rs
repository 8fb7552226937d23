//! What of a text counts when it is compared: its words, after whatever is to be ignored was taken out.
//!
//! The steps are SQuAD's (case, punctuation, articles), for all scripts, and with one difference: a step that would leave nothing is
//! left out. So the answer "A" to a question with choices is still "A", and "+" is still "+".

use std::collections::BTreeSet;

use fairlead_crds::evaluation::Ignored;
use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// The words of a text. Compatible forms of a character (full-width digits, ligatures) are one, and white space never counts.
///
/// A character of a script that is written without spaces is a word of its own.
pub fn words(text: &str, ignore: &BTreeSet<Ignored>) -> Vec<String> {
    let mut text: String = text.nfkc().collect();
    if ignore.contains(&Ignored::Case) {
        text = text.to_lowercase().nfkc().collect();
    }
    if ignore.contains(&Ignored::Citations) {
        text = unless_nothing_is_left(text, without_citations);
    }
    if ignore.contains(&Ignored::Punctuation) {
        text = unless_nothing_is_left(text, without_punctuation);
    }
    let words = split(&text);
    if !ignore.contains(&Ignored::Articles) {
        return words;
    }
    let rest: Vec<String> = words.iter().filter(|word| !is_article(word)).cloned().collect();
    if rest.is_empty() { words } else { rest }
}

fn unless_nothing_is_left(text: String, step: impl Fn(&str) -> String) -> String {
    let rest = step(&text);
    if rest.trim().is_empty() { text } else { rest }
}

/// `[1]`, `[2, 3]`, and the space before them.
fn without_citations(text: &str) -> String {
    let mut rest = String::with_capacity(text.len());
    let mut from = text;
    while let Some(open) = from.find('[') {
        let (before, after) = from.split_at(open);
        let inside = after.find(']').map(|close| (&after[1..close], &after[close + 1..]));
        match inside {
            Some((inside, behind)) if is_citation(inside) => {
                rest.push_str(before.trim_end());
                rest.push(' ');
                from = behind;
            }
            _ => {
                rest.push_str(before);
                rest.push('[');
                from = &after[1..];
            }
        }
    }
    rest.push_str(from);
    rest
}

fn is_citation(inside: &str) -> bool {
    !inside.is_empty()
        && inside.split(',').all(|number| {
            let number = number.trim();
            (1..=4).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit())
        })
}

/// ASCII punctuation, apostrophes and hyphens are taken out, as in SQuAD: `state-of-the-art` is one word. Other punctuation
/// separates words.
fn without_punctuation(text: &str) -> String {
    text.chars()
        .filter_map(|c| match c {
            '\u{2018}' | '\u{2019}' | '\u{02bc}' | '\u{2010}' | '\u{2011}' => None,
            _ if c.is_ascii_punctuation() => None,
            _ if c.general_category_group() == GeneralCategoryGroup::Punctuation => Some(' '),
            _ => Some(c),
        })
        .collect()
}

fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for part in text.split_whitespace() {
        let mut word = String::new();
        for c in part.chars() {
            // What punctuation is left stands by itself, so that "rope." has the word "rope" in it.
            let alone = is_written_without_spaces(c)
                || c.is_ascii_punctuation()
                || c.general_category_group() == GeneralCategoryGroup::Punctuation;
            if !alone {
                word.push(c);
                continue;
            }
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            words.push(c.to_string());
        }
        if !word.is_empty() {
            words.push(word);
        }
    }
    words
}

/// Chinese and Japanese characters; Thai, Lao, Khmer and Burmese letters.
fn is_written_without_spaces(c: char) -> bool {
    matches!(u32::from(c),
        0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x3040..=0x30ff | 0x31f0..=0x31ff
        | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x3fffd)
}

fn is_article(word: &str) -> bool {
    ["a", "an", "the"].iter().any(|article| word.eq_ignore_ascii_case(article))
}
