//! How a batch lies in flat tensors. Pure: checked here, so that no index reaches libtorch that a tensor does not have.

use fairlead_engine::encoder::EncoderInput;
use fairlead_model::encoder::{EncoderConfig, EncoderFamily};

/// Texts of one length that lie one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Their first token's row.
    pub first_row: i64,
    /// How many they are.
    pub inputs: i64,
    /// Tokens of each.
    pub length: i64,
}

/// A batch of texts, sorted by length.
#[derive(Debug)]
pub(super) struct Batch {
    /// Numbers of the inputs in the order in which they lie here.
    pub order: Vec<usize>,
    /// All tokens.
    pub tokens: Vec<i64>,
    /// Position of each token.
    pub positions: Vec<i64>,
    /// Type of each token; empty where all are 0.
    pub token_types: Vec<i64>,
    /// Groups of equal length; together they are all rows.
    pub groups: Vec<Group>,
    /// Row of each input's first token.
    pub first_rows: Vec<i64>,
}

impl Batch {
    /// Lays a batch out.
    pub(super) fn new(inputs: &[&EncoderInput], config: &EncoderConfig) -> Result<Self, String> {
        for input in inputs {
            check(input, config)?;
        }
        let mut order: Vec<usize> = (0..inputs.len()).collect();
        let length = |index: &usize| inputs.get(*index).map_or(0, |input| input.tokens.len());
        order.sort_by_key(length);

        let total = inputs.iter().map(|input| input.tokens.len()).sum();
        let mut batch = Self {
            tokens: Vec::with_capacity(total),
            positions: Vec::with_capacity(total),
            token_types: Vec::new(),
            groups: Vec::new(),
            first_rows: Vec::with_capacity(inputs.len()),
            order,
        };
        let has_types = config.type_vocab_size > 1
            && inputs.iter().any(|input| input.token_types.iter().any(|kind| *kind > 0));
        for input in batch.order.iter().filter_map(|index| inputs.get(*index)) {
            let row = batch.tokens.len() as i64;
            batch.first_rows.push(row);
            let length = input.tokens.len() as i64;
            match batch.groups.last_mut() {
                Some(group) if group.length == length => group.inputs += 1,
                _ => batch.groups.push(Group { first_row: row, inputs: 1, length }),
            }
            batch.tokens.extend(input.tokens.iter().map(|token| i64::from(*token)));
            push_positions(&mut batch.positions, &input.tokens, config);
            if has_types {
                let kinds = input.token_types.iter().map(|kind| i64::from(*kind)).chain(std::iter::repeat(0));
                batch.token_types.extend(kinds.take(input.tokens.len()));
            }
        }
        Ok(batch)
    }
}

fn check(input: &EncoderInput, config: &EncoderConfig) -> Result<(), String> {
    let tokens = input.tokens.len();
    if tokens == 0 || tokens > config.longest() as usize {
        return Err(format!("an input has {tokens} tokens, from 1 to {} are possible", config.longest()));
    }
    if let Some(token) = input.tokens.iter().find(|token| **token >= config.vocab_size) {
        return Err(format!("an input has token {token}, the model has {}", config.vocab_size));
    }
    let types = config.type_vocab_size.max(1);
    match input.token_types.iter().find(|kind| u32::from(**kind) >= types && types > 1) {
        Some(kind) => Err(format!("an input has token type {kind}, the model has {types}")),
        None => Ok(()),
    }
}

/// RoBERTa counts the tokens that are not padding, from the number after padding's on; a padding token gets padding's own.
fn push_positions(positions: &mut Vec<i64>, tokens: &[u32], config: &EncoderConfig) {
    match config.architecture.family() {
        EncoderFamily::Bert | EncoderFamily::DistilBert => positions.extend(0..tokens.len() as i64),
        EncoderFamily::Roberta => {
            let padding = i64::from(config.pad_token_id);
            let mut next = padding;
            positions.extend(tokens.iter().map(|token| {
                if *token == config.pad_token_id {
                    return padding;
                }
                next += 1;
                next
            }));
        }
    }
}
