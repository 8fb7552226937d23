//! Attention of single tokens over a paged cache, read in place.
//!
//! Each thread takes one key and value head of one token: the query heads that share it pass over the context once, a chunk of
//! keys and then the same chunk of values, with a running maximum (as in FlashAttention), so memory does not grow with the
//! context.

use std::ops::Range;

use tch::{TchError, Tensor};

use super::dot::{TILE_COLUMNS, TILE_ROWS, add_products, arrange, column_groups, finish, with_columns};
use super::lanes::{F32x8, LANES};
use super::number::{Bf16, Element, Number};
use super::pointwise::exp;
use super::threads::share_out;
use super::view::{Target, View};

/// Tokens of the context that are looked at together.
const CHUNK: usize = 64;

/// What one query token sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visible {
    /// Positions in its sequence, its own included.
    pub positions: Range<usize>,
    /// Where its sequence's blocks are listed in [`PagedQueries::blocks`].
    pub table: Range<usize>,
}

/// Query tokens and where their contexts lie.
#[derive(Clone, Debug)]
pub struct PagedQueries {
    /// One for each query token.
    pub tokens: Vec<Visible>,
    /// The block tables, one after the other.
    pub blocks: Vec<u32>,
    /// Tokens in a block.
    pub block_tokens: usize,
}

/// Attention of `queries`, `[tokens, heads, head_dim]`, over `keys` and `values`, `[slots, kv_heads, head_dim]` each:
/// `[tokens, heads * head_dim]`. Scores are divided by the square root of `head_dim`.
///
/// # Errors
/// As for [`super::linear`]; also if a token's blocks do not hold its positions, or are not in the cache.
pub fn paged_attention(
    plan: &PagedQueries,
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
) -> Result<Tensor, TchError> {
    super::require_support()?;
    if queries.f_kind()? == Bf16::KIND {
        attend::<Bf16>(plan, queries, keys, values)
    } else {
        attend::<f32>(plan, queries, keys, values)
    }
}

fn attend<T: Number>(
    plan: &PagedQueries,
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
) -> Result<Tensor, TchError> {
    let q = View::<T, 3>::of(queries, "the queries")?;
    let k = View::<T, 3>::of(keys, "the cache's keys")?;
    let v = View::<T, 3>::of(values, "the cache's values")?;
    let [tokens, heads, head_dim] = q.shape;
    let [slots, kv_heads, _] = k.shape;
    let fits = plan.tokens.len() == tokens
        && k.shape == v.shape
        && k.shape[2] == head_dim
        && kv_heads > 0
        && heads.is_multiple_of(kv_heads)
        && plan.block_tokens > 0
        && plan.blocks.iter().all(|&block| (block as usize + 1) * plan.block_tokens <= slots)
        && plan.tokens.iter().all(|token| {
            let table = plan.blocks.get(token.table.clone()).unwrap_or_default();
            !token.positions.is_empty() && token.positions.end <= table.len() * plan.block_tokens
        });
    if !fits {
        let problem = format!("attention of {:?} over a cache of {:?}", q.shape, k.shape);
        return Err(TchError::Shape(problem));
    }
    let result = Tensor::f_empty([tokens as i64, (heads * head_dim) as i64], (T::KIND, queries.device()))?;
    let target = Target::<T, 2>::of(&result, "the result")?;
    let groups = heads / kv_heads;
    share_out(tokens * kv_heads, 1, &|range| {
        let mut head = Head::new(groups, head_dim);
        for item in range {
            let (token, kv_head) = (item / kv_heads, item % kv_heads);
            let first = kv_head * groups * head_dim;
            let context = Context {
                k: &k,
                v: &v,
                table: &plan.blocks[plan.tokens[token].table.clone()],
                block_tokens: plan.block_tokens,
                kv_head,
            };
            // SAFETY: the processor was asked, positions and blocks were checked, and the numbers of this token's and head's
            // result are this thread's.
            unsafe {
                head.run(
                    &q.row(token)[first..][..groups * head_dim],
                    &context,
                    &plan.tokens[token].positions,
                );
                head.finish(target.slice(token * target.stride + first, groups * head_dim));
            }
        }
    });
    Ok(result)
}

/// Where the keys and values of one sequence's head lie.
struct Context<'a, T> {
    k: &'a View<'a, T, 3>,
    v: &'a View<'a, T, 3>,
    table: &'a [u32],
    block_tokens: usize,
    kv_head: usize,
}

/// What one thread keeps of the query heads that share a key and value head.
struct Head {
    groups: usize,
    head_dim: usize,
    /// `[groups, head_dim]`, scaled and arranged.
    queries: Vec<f32>,
    /// `[groups, CHUNK]`
    scores: Vec<f32>,
    /// `[groups, head_dim]`: sums of values, weighted relative to `largest`.
    sums: Vec<f32>,
    /// Largest score so far.
    largest: Vec<f32>,
    /// Sum of weights relative to it.
    weights: Vec<f32>,
}

impl Head {
    fn new(groups: usize, head_dim: usize) -> Self {
        Self {
            groups,
            head_dim,
            queries: vec![0.0; groups * head_dim],
            scores: vec![0.0; groups * CHUNK],
            sums: vec![0.0; groups * head_dim],
            largest: vec![0.0; groups],
            weights: vec![0.0; groups],
        }
    }

    /// Passes over the context. `queries` is `[groups * head_dim]`.
    ///
    /// # Safety
    /// The processor has what [`super::lanes::supported`] asks for; the table has the blocks of all `positions`, and they are in
    /// the cache.
    #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
    unsafe fn run<T: Number>(&mut self, queries: &[T], context: &Context<'_, T>, positions: &Range<usize>) {
        let scale = (self.head_dim as f32).sqrt().recip();
        for (scaled, query) in self.queries.iter_mut().zip(queries) {
            *scaled = query.to_f32() * scale;
        }
        for query in self.queries.chunks_exact_mut(self.head_dim) {
            arrange::<T>(query);
        }
        self.sums.fill(0.0);
        self.largest.fill(f32::NEG_INFINITY);
        self.weights.fill(0.0);
        let mut begin = positions.start;
        while begin < positions.end {
            let count = CHUNK.min(positions.end - begin);
            let mut keys = [std::ptr::null(); CHUNK];
            let mut values = [std::ptr::null(); CHUNK];
            for (index, (key, value)) in keys.iter_mut().zip(&mut values).take(count).enumerate() {
                let position = begin + index;
                let block = context.table[position / context.block_tokens] as usize;
                let slot = block * context.block_tokens + position % context.block_tokens;
                let inside = context.kv_head * self.head_dim;
                *key = context.k.row(slot)[inside..].as_ptr();
                *value = context.v.row(slot)[inside..].as_ptr();
            }
            // SAFETY: each pointer is at a head's beginning, `head_dim` numbers.
            unsafe {
                self.score(&keys[..count]);
                self.weigh(count);
                self.add_values(&values[..count]);
            }
            begin += count;
        }
    }

    /// The scores of a chunk.
    #[inline(always)]
    unsafe fn score<T: Number>(&mut self, keys: &[*const T]) {
        for (first, group) in column_groups::<T>(self.groups) {
            with_columns!(group, C => {
                let mut columns = [std::ptr::null(); C];
                for (index, column) in columns.iter_mut().enumerate() {
                    *column = self.queries[(first + index) * self.head_dim..].as_ptr();
                }
                for (tile, rows) in keys.chunks(TILE_ROWS).enumerate() {
                    // A last tile that is not full repeats its last row.
                    let mut pointers = [rows[rows.len() - 1]; TILE_ROWS];
                    pointers[..rows.len()].copy_from_slice(rows);
                    let mut sums = [[F32x8::splat(0.0); C]; TILE_ROWS];
                    // SAFETY: as the caller of `run` promises.
                    unsafe { add_products(&mut sums, pointers, columns, self.head_dim, 0) };
                    for (row, sums) in sums.iter().enumerate().take(rows.len()) {
                        for (index, sum) in sums.iter().enumerate() {
                            // SAFETY: the same.
                            let score = unsafe { finish(*sum, pointers[row], columns[index], self.head_dim) };
                            self.scores[(first + index) * CHUNK + tile * TILE_ROWS + row] = score;
                        }
                    }
                }
            });
        }
    }

    /// Turns a chunk's scores into weights, and what was summed before into weights relative to the new maximum.
    #[inline(always)]
    fn weigh(&mut self, count: usize) {
        for group in 0..self.groups {
            let scores = &mut self.scores[group * CHUNK..][..count];
            let before = self.largest[group];
            let largest = scores.iter().fold(before, |largest, score| largest.max(*score));
            for score in scores.iter_mut() {
                *score = exp(*score - largest);
            }
            let total: f32 = scores.iter().sum();
            if before == f32::NEG_INFINITY {
                self.weights[group] = total;
            } else {
                let fade = exp(before - largest);
                self.weights[group] = self.weights[group].mul_add(fade, total);
                for sum in &mut self.sums[group * self.head_dim..][..self.head_dim] {
                    *sum *= fade;
                }
            }
            self.largest[group] = largest;
        }
    }

    /// Adds a chunk's values.
    #[inline(always)]
    unsafe fn add_values<T: Number>(&mut self, values: &[*const T]) {
        for (first, group) in column_groups::<T>(self.groups) {
            with_columns!(group, C => {
                let mut at = 0;
                while at + 4 * LANES <= self.head_dim {
                    // SAFETY: `at` plus what is added stays within a head.
                    unsafe { self.add_columns::<T, C, 4>(first, at, values) };
                    at += 4 * LANES;
                }
                while at + LANES <= self.head_dim {
                    // SAFETY: the same.
                    unsafe { self.add_columns::<T, C, 1>(first, at, values) };
                    at += LANES;
                }
                for at in at..self.head_dim {
                    for group in first..first + C {
                        for (value, weight) in values.iter().zip(&self.scores[group * CHUNK..]) {
                            // SAFETY: the same.
                            self.sums[group * self.head_dim + at] += weight * unsafe { (*value.add(at)).to_f32() };
                        }
                    }
                }
            });
        }
    }

    /// Adds the numbers `at .. at + V * LANES` of each value to the sums of `C` groups.
    #[inline(always)]
    unsafe fn add_columns<T: Number, const C: usize, const V: usize>(
        &mut self,
        first: usize,
        at: usize,
        values: &[*const T],
    ) {
        const { assert!(C <= TILE_COLUMNS) };
        let mut sums = [[F32x8::splat(0.0); V]; C];
        for column in 0..C {
            for vector in 0..V {
                let from = &self.sums[(first + column) * self.head_dim + at + vector * LANES..][..LANES];
                // SAFETY: the slice has eight numbers.
                sums[column][vector] = unsafe { F32x8::load(from.as_ptr()) };
            }
        }
        for (index, value) in values.iter().enumerate() {
            let mut numbers = [F32x8::splat(0.0); V];
            for vector in 0..V {
                // SAFETY: as the caller promises.
                numbers[vector] = unsafe { T::load(value.add(at + vector * LANES)) };
            }
            for column in 0..C {
                let weight = F32x8::splat(self.scores[(first + column) * CHUNK + index]);
                for vector in 0..V {
                    sums[column][vector] = numbers[vector].mul_add(weight, sums[column][vector]);
                }
            }
        }
        for column in 0..C {
            for vector in 0..V {
                let to = &mut self.sums[(first + column) * self.head_dim + at + vector * LANES..][..LANES];
                // SAFETY: the slice has eight numbers.
                unsafe { sums[column][vector].store(to.as_mut_ptr()) };
            }
        }
    }

    /// Writes the weighted means to `target`, `[groups * head_dim]`.
    fn finish<T: Number>(&self, target: &mut [T]) {
        let rows = target.chunks_exact_mut(self.head_dim).zip(self.sums.chunks_exact(self.head_dim));
        for ((target, sums), weight) in rows.zip(&self.weights) {
            for (target, sum) in target.iter_mut().zip(sums) {
                *target = T::from_f32(sum / weight);
            }
        }
    }
}
