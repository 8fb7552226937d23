//! What a prompt begins with, as a chain of hashes: two prompts that begin alike have the same first hashes. Pure.
//!
//! Owns how a prompt becomes a run of bytes (as a chat template would order it: tools, then messages) and where blocks end.
//! The hashes are the same in every process and say nothing that could be read back; what is keyed by them is a guess about
//! pods' caches, so that two prompts with one hash cost time and nothing else. Called by `request`, once for each request.

use std::io::{self, Write};

use fairlead_openai::Prompt;
use fairlead_openai::chat::{ChatPrompt, MessageContent};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes between two links of the chain.
const UNIT: usize = 256;
/// Units in an octave: up to twice as many there is a block for each unit, then one for every second, and so on.
const OCTAVE: usize = 32;
/// Of a plain completion's prompt, the bytes that stand for the whole conversation.
const OPENING: usize = 1024;

/// The beginning of a prompt, block by block.
///
/// Blocks grow with their distance from the beginning, so that a prompt of any length has few: 100 kB have 144, 16 MiB have
/// 384, and what a match is short of the truth by is 3 % at most, or 256 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptKey {
    blocks: Vec<u64>,
    opening: u64,
    bytes: usize,
}

impl PromptKey {
    /// The key of a chat.
    pub fn of_chat(prompt: &ChatPrompt) -> Self {
        let mut hasher = Hasher::default();
        for tool in &prompt.tools.tools {
            // Written to memory, where nothing fails.
            let _ = serde_json::to_writer(&mut hasher, &tool.raw);
            hasher.push(b"\n");
        }
        let mut opening = None;
        for message in &prompt.messages {
            hasher.push(message.role.as_bytes());
            hasher.push(b"\x01");
            match &message.content {
                None => {}
                Some(MessageContent::Text(text)) => hasher.push(text.as_bytes()),
                Some(parts @ MessageContent::Parts(_)) => hasher.push(parts.text().as_bytes()),
            }
            for call in &message.tool_calls {
                hasher.push(call.function.name.as_bytes());
                hasher.push(call.function.arguments.as_bytes());
            }
            hasher.push(b"\x02");
            // Every later turn of a conversation begins with its first question too.
            if opening.is_none() && message.role == "user" {
                opening = Some(hasher.here());
            }
        }
        let opening = opening.unwrap_or_else(|| hasher.here());
        hasher.finish(opening)
    }

    /// The key of a completion. Of several prompts the first counts: they are sent together and go to one pod.
    pub fn of_completion(prompts: &[Prompt]) -> Self {
        let mut hasher = Hasher::default();
        let mut opening = None;
        match prompts.first() {
            None => {}
            Some(Prompt::Text(text)) => {
                let (first, rest) = text.as_bytes().split_at(text.len().min(OPENING));
                hasher.push(first);
                opening = Some(hasher.here());
                hasher.push(rest);
            }
            Some(Prompt::Tokens(tokens)) => {
                for (index, token) in tokens.iter().enumerate() {
                    if index == OPENING / 4 {
                        opening = Some(hasher.here());
                    }
                    hasher.push(&token.to_le_bytes());
                }
            }
        }
        let opening = opening.unwrap_or_else(|| hasher.here());
        hasher.finish(opening)
    }

    /// The hash at the end of each block, which stands for everything up to there.
    pub fn blocks(&self) -> &[u64] {
        &self.blocks
    }

    /// What all turns of a conversation share.
    pub fn opening(&self) -> u64 {
        self.opening
    }

    /// Bytes of the prompt.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that the first `blocks` blocks hold.
    pub fn bytes_of(blocks: usize) -> usize {
        let units = match blocks.checked_sub(OCTAVE) {
            None => blocks,
            Some(over) => (OCTAVE + over % OCTAVE) << (over / OCTAVE),
        };
        units * UNIT
    }
}

/// Whether a block ends after this many units.
fn ends_block(units: usize) -> bool {
    let octave = (units / OCTAVE).checked_ilog2().unwrap_or(0);
    units.trailing_zeros() >= octave
}

struct Hasher {
    chain: u64,
    units: usize,
    unit: [u8; UNIT],
    /// Bytes of the unit that are there already, less than all.
    pending: usize,
    blocks: Vec<u64>,
}

impl Default for Hasher {
    fn default() -> Self {
        Self { chain: 0, units: 0, unit: [0; UNIT], pending: 0, blocks: Vec::new() }
    }
}

impl Hasher {
    fn push(&mut self, mut bytes: &[u8]) {
        if self.pending > 0 {
            let (first, rest) = bytes.split_at(bytes.len().min(UNIT - self.pending));
            self.keep(first);
            bytes = rest;
            if self.pending < UNIT {
                return;
            }
            self.pending = 0;
            let unit = self.unit;
            self.link(&unit);
        }
        let (units, rest) = bytes.as_chunks();
        for unit in units {
            self.link(unit);
        }
        self.keep(rest);
    }

    /// Adds bytes to the unit, which has room for them.
    fn keep(&mut self, bytes: &[u8]) {
        let end = self.pending + bytes.len();
        if let Some(room) = self.unit.get_mut(self.pending..end) {
            room.copy_from_slice(bytes);
            self.pending = end;
        }
    }

    fn link(&mut self, unit: &[u8; UNIT]) {
        self.chain = xxh3_64_with_seed(unit, self.chain);
        self.units += 1;
        if ends_block(self.units) {
            self.blocks.push(self.chain);
        }
    }

    /// A hash of everything so far.
    fn here(&self) -> u64 {
        xxh3_64_with_seed(&self.unit[..self.pending], self.chain)
    }

    fn finish(self, opening: u64) -> PromptKey {
        PromptKey { bytes: self.units * UNIT + self.pending, blocks: self.blocks, opening }
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_openai::ChatCompletionRequest;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn chat(messages: &Value) -> PromptKey {
        let request = json!({"model": "m", "messages": messages});
        PromptKey::of_chat(&ChatCompletionRequest::from_value(&request).expect("a request").prompt)
    }

    fn text(text: &str) -> PromptKey {
        PromptKey::of_completion(&[Prompt::Text(text.to_owned())])
    }

    fn common(a: &PromptKey, b: &PromptKey) -> usize {
        a.blocks().iter().zip(b.blocks()).take_while(|(a, b)| a == b).count()
    }

    #[test]
    fn the_next_turn_begins_with_all_of_the_turn_before() {
        let say = |role: &str, seed: &str| json!({"role": role, "content": seed.repeat(300)});
        let mut messages = vec![say("system", "Be kind. "), say("user", "Why? ")];
        let first = chat(&json!(messages));
        messages.extend([say("assistant", "So. "), say("user", "And? ")]);
        let second = chat(&json!(messages));
        assert_eq!(common(&first, &second), first.blocks().len());
        assert!(second.blocks().len() > first.blocks().len());
        assert_eq!(first.opening(), second.opening());
        let other = chat(&json!([say("system", "Be kind. "), say("user", "How? ")]));
        assert_ne!(first.opening(), other.opening());
        // 300 times nine bytes of the system's message are ten whole blocks.
        assert_eq!(common(&first, &other), 10);
    }

    #[test]
    fn how_the_same_thing_is_written_makes_no_difference() {
        let long = "x".repeat(1000);
        let plain = chat(&json!([{"role": "user", "content": long}]));
        let parts =
            chat(&json!([{"content": [{"type": "text", "text": long}], "role": "user", "name": "n"}]));
        assert_eq!(plain, parts);
        let split = chat(
            &json!([{"role": "user", "content": &long[..500]}, {"role": "user", "content": &long[500..]}]),
        );
        assert_ne!(plain.blocks().last(), split.blocks().last(), "a turn's end is part of the prompt");
    }

    #[test]
    fn tools_come_before_the_messages() {
        let long = "x".repeat(1000);
        let request = |name: &str| {
            let value = json!({"model": "m", "messages": [{"role": "user", "content": long}],
                "tools": [{"type": "function", "function": {"name": name}}]});
            PromptKey::of_chat(&ChatCompletionRequest::from_value(&value).expect("a request").prompt)
        };
        assert_eq!(common(&request("a"), &request("b")), 0);
        assert_eq!(request("a"), request("a"));
    }

    /// Gateways of several versions beside one another guess alike only where they hash alike.
    #[test]
    fn hashes_are_those_of_earlier_versions() {
        let line = |from: usize, to: usize| {
            (from..to).map(|number| format!("{number} é\n")).collect::<Vec<_>>().concat()
        };
        let value = json!({
            "model": "m",
            "messages": [
                {"role": "system", "content": line(0, 10)},
                {"role": "user", "content": line(0, 300)},
                {"role": "assistant", "tool_calls": [
                    {"id": "1", "function": {"name": "f", "arguments": {"b": [1.50, -0.0, 1e3, 18446744073709551615_u64], "a": null}}}
                ]},
                {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": line(5, 900)}]},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": {"x": 2.0}}}}],
        });
        let chat = PromptKey::of_chat(&ChatCompletionRequest::from_value(&value).expect("a request").prompt);
        let tokens = PromptKey::of_completion(&[Prompt::Tokens((0..3000).collect())]);
        let said = [&chat, &text(&line(0, 2000)), &tokens].map(|key| {
            let all = key.blocks().iter().fold(0, |all: u64, block| all.rotate_left(7) ^ block);
            (key.blocks().len(), all, key.opening(), key.bytes())
        });
        let then = [
            (32, 0xa1aa_2ee7_8d5f_12e1, 0x9cf8_5f6f_ff8d_c195, 8371),
            (58, 0x368b_4be8_9d4a_1205, 0x9bc1_3819_4022_a57d, 14890),
            (46, 0x79d5_1341_c2c7_144d, 0x40f1_2378_e6aa_6084, 12000),
        ];
        assert_eq!(said, then);
    }

    #[test]
    fn tokens_have_blocks_too() {
        let tokens = |count: u32| PromptKey::of_completion(&[Prompt::Tokens((0..count).collect())]);
        assert_eq!(tokens(640).blocks().len(), 10);
        assert_eq!(common(&tokens(640), &tokens(1280)), 10);
        assert_eq!(tokens(640).opening(), tokens(1280).opening());
        assert_eq!(PromptKey::of_completion(&[]).blocks().len(), 0);
    }

    #[test]
    fn long_prompts_have_few_blocks() {
        let blocks = |bytes: usize| text(&"a".repeat(bytes)).blocks().len();
        assert_eq!([blocks(255), blocks(256), blocks(16 << 10)], [0, 1, 64]);
        assert_eq!([blocks(100_000), blocks(400_000), blocks(16 << 20)], [144, 208, 384]);
    }

    proptest! {
        #[test]
        fn a_block_ends_where_the_arithmetic_says(bytes in 0_usize..3_000_000) {
            let mut ends = (1..=bytes / UNIT).filter(|units| ends_block(*units));
            let count = ends.clone().count();
            for block in 1..=count {
                prop_assert_eq!(PromptKey::bytes_of(block), ends.next().expect("an end") * UNIT);
            }
            let next = PromptKey::bytes_of(count + 1);
            prop_assert!(next > bytes);
            // What a prompt has beyond its last block is little of it.
            prop_assert!(bytes - PromptKey::bytes_of(count) <= (bytes / OCTAVE).max(UNIT));
        }

        #[test]
        fn hashes_depend_on_the_bytes_and_not_on_the_pieces(
            bytes in prop::collection::vec(any::<u8>(), 0..3000),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut whole = Hasher::default();
            whole.push(&bytes);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let (mut pieces, mut from) = (Hasher::default(), 0);
            for to in cuts {
                pieces.push(&bytes[from..to]);
                from = to;
            }
            prop_assert_eq!(whole.here(), pieces.here());
            prop_assert_eq!(whole.finish(0), pieces.finish(0));
        }

        #[test]
        fn prompts_agree_exactly_as_far_as_they_are_the_same(
            shared in 0_usize..40_000, a in 1_usize..20_000, b in 1_usize..20_000,
        ) {
            let make = |tail: usize, letter: &str| text(&format!("{}{}", "s".repeat(shared), letter.repeat(tail)));
            let (left, right) = (make(a, "a"), make(b, "b"));
            let agree = common(&left, &right);
            prop_assert!(PromptKey::bytes_of(agree) <= shared);
            let possible = left.blocks().len().min(right.blocks().len());
            prop_assert!(agree == possible || PromptKey::bytes_of(agree + 1) > shared);
        }
    }
}
