//! How a step's tokens lie in the flat batch: pure arithmetic on the engine's [`StepBatch`], no tensor.
//!
//! Sequences with one token (nearly always decodes) come first, shortest context first, so that each group of similar
//! length is a range of rows; then come the rest, one range of rows each. Built once for a step by
//! [`crate::backend`], read by attention and by the choice of logits.

use std::ops::Range;

use fairlead_engine::backend::{KvCapacity, SequenceStep, StepBatch};

/// A group takes in longer contexts as long as they are at most this many blocks…
const SHORT_BLOCKS: usize = 8;
/// … or this many percent of the group's shortest. Padding costs memory traffic, another group costs calls.
const LONGEST_PERCENT: usize = 150;

/// Sequences with one token each, whose contexts are padded to the same number of blocks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DecodeGroup {
    /// Their rows; one sequence a row.
    pub(crate) rows: Range<usize>,
    /// Blocks of each sequence after padding.
    pub(crate) blocks: usize,
    /// Block tables, one after the other, padded with block 0.
    pub(crate) table: Vec<i64>,
    /// Tokens that each sequence attends to, its own included.
    pub(crate) lengths: Vec<i64>,
}

/// Several tokens of one sequence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PrefillSpan {
    /// Their rows.
    pub(crate) rows: Range<usize>,
    /// Tokens of the sequence that are in the cache already.
    pub(crate) cached: i64,
    /// Blocks of the whole context: what is cached and the span itself.
    pub(crate) table: Vec<i64>,
}

/// Where everything in a step lies.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StepLayout {
    /// Token of each row.
    pub(crate) tokens: Vec<i64>,
    /// Position of each row's token in its sequence.
    pub(crate) positions: Vec<i64>,
    /// Slot of the cache that each row's keys and values go to.
    pub(crate) slots: Vec<i64>,
    /// Sequences with one token.
    pub(crate) decodes: Vec<DecodeGroup>,
    /// Sequences with more.
    pub(crate) prefills: Vec<PrefillSpan>,
    /// Rows of each sequence, in the batch's order.
    pub(crate) rows: Vec<Range<usize>>,
}

impl StepLayout {
    /// Lays a batch out.
    ///
    /// # Errors
    /// A description of the first sequence that asks for the impossible: no tokens, a token beyond the vocabulary, a block
    /// table that is too short or names a block that does not exist. The scheduler makes none of these; libtorch would
    /// read or write elsewhere for some of them.
    pub(crate) fn new(batch: &StepBatch, capacity: KvCapacity, vocabulary: u32) -> Result<Self, String> {
        for sequence in &batch.sequences {
            check(sequence, capacity, vocabulary)?;
        }
        let blocks_of = |index: usize| context_blocks(&batch.sequences[index], capacity);
        let (mut singles, spans): (Vec<usize>, Vec<usize>) =
            (0..batch.sequences.len()).partition(|&index| batch.sequences[index].tokens.len() == 1);
        singles.sort_by_key(|&index| blocks_of(index));

        let total = batch.sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        let mut layout = Self {
            tokens: Vec::with_capacity(total),
            positions: Vec::with_capacity(total),
            slots: Vec::with_capacity(total),
            decodes: Vec::new(),
            prefills: Vec::with_capacity(spans.len()),
            rows: vec![0..0; batch.sequences.len()],
        };
        let mut rest = singles.as_slice();
        while let Some(&first) = rest.first() {
            let longest = SHORT_BLOCKS.max(blocks_of(first) * LONGEST_PERCENT / 100);
            let (group, others) =
                rest.split_at(rest.partition_point(|&index| blocks_of(index) <= longest).max(1));
            layout.push_group(batch, group, group.last().map_or(0, |&last| blocks_of(last)), capacity);
            rest = others;
        }
        for index in spans {
            let sequence = &batch.sequences[index];
            let rows = layout.push_rows(index, sequence, capacity);
            let table =
                sequence.block_table.iter().take(blocks_of(index)).map(|&block| i64::from(block)).collect();
            layout.prefills.push(PrefillSpan { rows, cached: i64::from(sequence.first_position), table });
        }
        Ok(layout)
    }

    fn push_group(&mut self, batch: &StepBatch, group: &[usize], blocks: usize, capacity: KvCapacity) {
        let first_row = self.tokens.len();
        let mut table = Vec::with_capacity(group.len() * blocks);
        let mut lengths = Vec::with_capacity(group.len());
        for &index in group {
            let sequence = &batch.sequences[index];
            self.push_rows(index, sequence, capacity);
            let own = context_blocks(sequence, capacity);
            table.extend(sequence.block_table.iter().take(own).map(|&block| i64::from(block)));
            table.resize(lengths.len() * blocks + blocks, 0);
            lengths.push(i64::from(sequence.first_position) + 1);
        }
        self.decodes.push(DecodeGroup { rows: first_row..self.tokens.len(), blocks, table, lengths });
    }

    fn push_rows(&mut self, index: usize, sequence: &SequenceStep, capacity: KvCapacity) -> Range<usize> {
        let first_row = self.tokens.len();
        let block_tokens = capacity.block_tokens as usize;
        for (position, &token) in (sequence.first_position as usize..).zip(&sequence.tokens) {
            let block = sequence.block_table[position / block_tokens] as usize;
            self.tokens.push(i64::from(token));
            self.positions.push(position as i64);
            self.slots.push((block * block_tokens + position % block_tokens) as i64);
        }
        self.rows[index] = first_row..self.tokens.len();
        self.rows[index].clone()
    }
}

/// Blocks that hold a sequence up to the end of this step.
fn context_blocks(sequence: &SequenceStep, capacity: KvCapacity) -> usize {
    (sequence.first_position as usize + sequence.tokens.len()).div_ceil(capacity.block_tokens as usize)
}

fn check(sequence: &SequenceStep, capacity: KvCapacity, vocabulary: u32) -> Result<(), String> {
    let id = sequence.sequence;
    if sequence.tokens.is_empty() {
        return Err(format!("sequence {id} has no tokens in this step"));
    }
    if let Some(token) = sequence.tokens.iter().find(|&&token| token >= vocabulary) {
        return Err(format!("sequence {id} holds token {token}, the vocabulary has {vocabulary}"));
    }
    let needed = context_blocks(sequence, capacity);
    let held = sequence.block_table.len();
    if held < needed {
        return Err(format!("sequence {id} has {held} blocks and needs {needed}"));
    }
    if let Some(block) = sequence.block_table.iter().find(|&&block| block >= capacity.blocks) {
        return Err(format!("sequence {id} names block {block}, the cache has {}", capacity.blocks));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: KvCapacity = KvCapacity { blocks: 100, block_tokens: 4, block_bytes: 4 };

    fn sequence(id: u64, first_position: u32, tokens: &[u32], block_table: &[u32]) -> SequenceStep {
        SequenceStep {
            sequence: id,
            tokens: tokens.to_vec(),
            first_position,
            block_table: block_table.to_vec(),
            drafts: 0,
            adapter: None,
            sample: None,
        }
    }

    #[test]
    fn decodes_come_first_and_slots_follow_the_block_tables() {
        let batch = StepBatch::from(vec![
            sequence(1, 3, &[10, 11], &[7, 2, 50]),
            sequence(2, 5, &[12], &[9, 8]),
            sequence(3, 0, &[13], &[30]),
        ]);
        let layout = StepLayout::new(&batch, CAPACITY, 20).unwrap();
        assert_eq!(layout.tokens, [13, 12, 10, 11]);
        assert_eq!(layout.positions, [0, 5, 3, 4]);
        assert_eq!(layout.slots, [30 * 4, 8 * 4 + 1, 7 * 4 + 3, 2 * 4]);
        assert_eq!(layout.rows, [2..4, 1..2, 0..1]);
        let group = DecodeGroup { rows: 0..2, blocks: 2, table: vec![30, 0, 9, 8], lengths: vec![1, 6] };
        assert_eq!(layout.decodes, [group]);
        // The third block is not reached yet.
        assert_eq!(layout.prefills, [PrefillSpan { rows: 2..4, cached: 3, table: vec![7, 2] }]);
    }

    #[test]
    fn contexts_of_very_different_length_are_not_padded_to_one_another() {
        let table: Vec<u32> = (1..90).collect();
        let lengths = [3, 31, 40, 56, 84, 300];
        let batch = StepBatch::from(
            lengths
                .iter()
                .map(|&length| sequence(u64::from(length), length, &[1], &table))
                .collect::<Vec<_>>(),
        );
        let layout = StepLayout::new(&batch, CAPACITY, 20).unwrap();
        // Blocks: 1, 8 | 11, 15 | 22 | 76
        let groups: Vec<(Range<usize>, usize)> =
            layout.decodes.iter().map(|group| (group.rows.clone(), group.blocks)).collect();
        assert_eq!(groups, [(0..2, 8), (2..4, 15), (4..5, 22), (5..6, 76)]);
        for group in &layout.decodes {
            assert_eq!(group.table.len(), group.rows.len() * group.blocks);
        }
    }

    #[test]
    fn refuses_what_would_reach_outside_the_cache_or_the_vocabulary() {
        for (broken, problem) in [
            (sequence(1, 0, &[], &[1]), "no tokens"),
            (sequence(1, 0, &[20], &[1]), "token 20"),
            (sequence(1, 4, &[1], &[1]), "has 1 blocks and needs 2"),
            (sequence(1, 0, &[1], &[100]), "block 100"),
        ] {
            let batch = StepBatch::from(vec![broken]);
            let error = StepLayout::new(&batch, CAPACITY, 20).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
