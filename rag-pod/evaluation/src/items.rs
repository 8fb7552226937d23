//! What is kept of each question: one JSON object a line, within a size.

use serde::{Deserialize, Serialize};

use crate::grade::Grade;

/// One question and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    /// The question's.
    pub id: String,
    /// The question's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// What the model said; absent where there was no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Why there was no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it is worth.
    #[serde(flatten)]
    pub grade: Grade,
    /// Seconds from the request to the whole answer, of the attempt that got one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// How often it was asked.
    pub attempts: u32,
    /// Why the answer ended, as the server says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// Tokens of the prompt, as the server says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer, as the server says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
    /// The revision that answered, as the pod says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

/// Items as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// One JSON object a line.
    pub text: String,
    /// Whether answers were cut short or items left out.
    pub truncated: bool,
}

/// Longest answers, in characters, that are tried one after another until all items fit.
const CUTS: [usize; 5] = [4096, 1024, 256, 64, 0];

/// Writes the items in at most `limit` bytes.
///
/// Where they do not fit, the longest answers are cut first and end with `… [cut, N characters]`; where not even items without
/// answers do, the last are left out and the last line says how many.
pub fn write(items: &[Item], limit: usize) -> Written {
    let whole = lines(items);
    if size(&whole) <= limit {
        return Written { text: whole.concat(), truncated: false };
    }
    for longest in CUTS {
        let cut: Vec<Item> = items.iter().map(|item| shortened(item, longest)).collect();
        let cut = lines(&cut);
        if size(&cut) <= limit {
            return Written { text: cut.concat(), truncated: true };
        }
    }
    let bare: Vec<Item> = items.iter().map(|item| shortened(item, 0)).collect();
    // What the last line may need.
    let room = limit.saturating_sub(64);
    let mut text = String::new();
    let mut kept = 0;
    for line in lines(&bare) {
        if text.len() + line.len() > room {
            break;
        }
        text.push_str(&line);
        kept += 1;
    }
    let last = format!("{{\"truncated\":true,\"leftOut\":{}}}\n", items.len() - kept);
    if text.len() + last.len() <= limit {
        text.push_str(&last);
    }
    Written { text, truncated: true }
}

fn lines(items: &[Item]) -> Vec<String> {
    // Plain data always has a JSON form.
    items.iter().map(|item| serde_json::to_string(item).unwrap_or_default() + "\n").collect()
}

fn size(lines: &[String]) -> usize {
    lines.iter().map(String::len).sum()
}

fn shortened(item: &Item, longest: usize) -> Item {
    let short = |text: &String| {
        let length = text.chars().count();
        if length <= longest {
            return text.clone();
        }
        let begin: String = text.chars().take(longest).collect();
        format!("{begin}… [cut, {length} characters]")
    };
    Item { answer: item.answer.as_ref().map(short), error: item.error.as_ref().map(short), ..item.clone() }
}
