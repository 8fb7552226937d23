//! The inner loop of products and of attention scores: a tile of dot products at once.

use super::lanes::{F32x8, LANES, prefetch};
use super::number::Number;

/// Rows of a full tile. A processor whose additions take four cycles and go two at a time is kept busy by eight sums at least;
/// with three columns they are twelve, and fill the sixteen registers of AVX2 together with their factors.
pub(crate) const TILE_ROWS: usize = 4;
/// Most columns of a full tile; [`Number::TILE_COLUMNS`] says what is best.
pub(crate) const TILE_COLUMNS: usize = 3;

/// Numbers that a step of a dot product takes from each row.
pub(crate) const STEP: usize = 2 * LANES;

/// Sums of a tile that are still spread over lanes.
pub(crate) type Sums<const R: usize, const C: usize> = [[F32x8; C]; R];

/// Puts the numbers of a column into the order in which [`add_products`] meets rows of this type.
pub(crate) fn arrange<T: Number>(column: &mut [f32]) {
    for step in column.as_chunks_mut::<STEP>().0 {
        T::arrange(step);
    }
}

/// Adds the products of each row with each column: the first `length` numbers of each, in whole steps only. Columns are
/// arranged. Asks for the numbers that lie `ahead` of those it multiplies, unless that is 0.
///
/// # Safety
/// All pointers are valid for reading `length` numbers, and the processor has what [`super::lanes::supported`] asks for.
#[inline(always)]
pub(crate) unsafe fn add_products<T: Number, const R: usize, const C: usize>(
    sums: &mut Sums<R, C>,
    rows: [*const T; R],
    columns: [*const f32; C],
    length: usize,
    ahead: usize,
) {
    // A copy, so that the sums stay in registers.
    let mut kept = *sums;
    for step in 0..length / STEP {
        let at = step * STEP;
        if ahead > 0 {
            for row in rows {
                prefetch(row.wrapping_add(at + ahead));
            }
        }
        // SAFETY: `at + STEP <= length`, for which the caller vouches.
        unsafe {
            add_half::<T, R, C, false>(&mut kept, rows, columns, at);
            add_half::<T, R, C, true>(&mut kept, rows, columns, at);
        }
    }
    *sums = kept;
}

#[inline(always)]
unsafe fn add_half<T: Number, const R: usize, const C: usize, const SECOND: bool>(
    sums: &mut Sums<R, C>,
    rows: [*const T; R],
    columns: [*const f32; C],
    at: usize,
) {
    let mut factors = [F32x8::splat(0.0); C];
    for column in 0..C {
        // SAFETY: as the caller promises.
        factors[column] = unsafe { F32x8::load(columns[column].add(if SECOND { at + LANES } else { at })) };
    }
    for row in 0..R {
        // SAFETY: as the caller promises.
        let numbers = unsafe { T::load_half::<SECOND>(rows[row].add(at)) };
        for column in 0..C {
            sums[row][column] = numbers.mul_add(factors[column], sums[row][column]);
        }
    }
}

/// The dot product of `length` numbers, of whose whole steps the sum is given.
///
/// # Safety
/// As for [`add_products`].
#[inline(always)]
pub(crate) unsafe fn finish<T: Number>(sum: F32x8, row: *const T, column: *const f32, length: usize) -> f32 {
    let mut sum = sum.sum();
    for rest in length / STEP * STEP..length {
        // SAFETY: `rest < length`, for which the caller vouches.
        sum += unsafe { (*row.add(rest)).to_f32() * *column.add(rest) };
    }
    sum
}

/// Calls `$body` with a constant `C` that is the number of columns in a group, at most [`TILE_COLUMNS`].
macro_rules! with_columns {
    ($count:expr, $C:ident => $body:expr) => {
        match $count {
            1 => {
                const $C: usize = 1;
                $body
            }
            2 => {
                const $C: usize = 2;
                $body
            }
            _ => {
                const $C: usize = 3;
                $body
            }
        }
    };
}
pub(crate) use with_columns;

/// Cuts `count` columns into groups of at most [`Number::TILE_COLUMNS`] that differ by at most one: beginning and length of each.
pub(crate) fn column_groups<T: Number>(count: usize) -> impl Iterator<Item = (usize, usize)> {
    let groups = count.div_ceil(T::TILE_COLUMNS);
    (0..groups).map(move |group| {
        let begin = group * count / groups;
        (begin, (group + 1) * count / groups - begin)
    })
}

#[cfg(test)]
mod tests {
    use super::super::number::Bf16;
    use super::*;

    fn covers_all_columns_evenly<T: Number>() {
        const { assert!(T::TILE_COLUMNS <= TILE_COLUMNS) };
        for count in 0..40 {
            let mut next = 0;
            for (begin, length) in column_groups::<T>(count) {
                assert_eq!(begin, next);
                assert!((1..=T::TILE_COLUMNS).contains(&length), "{count}");
                next += length;
            }
            assert_eq!(next, count);
        }
    }

    #[test]
    fn groups_cover_all_columns_evenly() {
        covers_all_columns_evenly::<f32>();
        covers_all_columns_evenly::<Bf16>();
    }
}
