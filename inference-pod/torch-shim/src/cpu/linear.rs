//! `x W^T + b` for few rows of x, and for bf16 weights on processors that cannot multiply bf16.
//!
//! A decode multiplies each weight with a handful of numbers, so it runs at the speed of memory or not at all: each weight is
//! read once, in place, and meets all rows of x while it is in the cache. libtorch's general product reads them well for one row
//! only. With bf16 weights on AVX2, libtorch converts each weight anew for each row; here a tile is converted once for two.

use std::ops::Range;

use tch::{TchError, Tensor};

use super::dot::{
    STEP, Sums, TILE_COLUMNS, TILE_ROWS, add_products, arrange, column_groups, finish, with_columns,
};
use super::lanes::{F32x8, LANES};
use super::number::{Bf16, Element, Number};
use super::threads::share_out;
use super::view::{Target, View};

/// Bytes of weights that a thread takes at a time: they stay in its second-level cache while all rows of x pass by.
const PANEL_BYTES: usize = 192 << 10;
/// Rows of x that pass by together: their sums stay in the second-level cache too.
const BLOCK_COLUMNS: usize = 48;
/// Columns up to which a product waits for memory, so rows are read from end to end. With more it waits for the processor, and
/// rows are cut into pieces…
const MOST_COLUMNS_IN_ONE_GO: usize = 16;
/// … of so many numbers: a tile of them and the columns they meet stay in the first-level cache.
const DEPTH: usize = 256;

/// `input`, `[rows, in]`, times the transpose of `weight`, `[out, in]`, plus `bias`, `[out]`: `[rows, out]`. All of one number
/// type, f32 or bf16; sums are f32.
///
/// # Errors
/// [`TchError`] if a tensor is not on the CPU, not of such a shape or number type, or memory runs out.
pub fn linear(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
    super::require_support()?;
    if weight.f_kind()? == Bf16::KIND {
        product::<Bf16>(input, weight, bias)
    } else {
        product::<f32>(input, weight, bias)
    }
}

fn product<T: Number>(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
    let x = View::<T, 2>::of(input, "the input")?;
    let w = View::<T, 2>::of(weight, "the weight")?;
    let b = bias.map(|bias| View::<T, 1>::of(bias, "the bias")).transpose()?;
    let ([rows, width], [out, weight_width]) = (x.shape, w.shape);
    if width != weight_width || b.as_ref().is_some_and(|bias| bias.shape[0] != out) {
        let problem = format!("a product of {:?} with {:?}", x.shape, w.shape);
        return Err(TchError::Shape(problem));
    }
    let result = Tensor::f_empty([rows as i64, out as i64], (T::KIND, input.device()))?;
    let target = Target::<T, 2>::of(&result, "the product")?;
    let converted = (T::KIND != f32::KIND).then(|| arranged(&x));
    let columns: Vec<*const f32> = (0..rows)
        .map(|row| match &converted {
            Some(numbers) => numbers[row * width..].as_ptr(),
            None => x.row(row).as_ptr().cast(),
        })
        .collect();
    let columns = Columns { pointers: &columns, width };
    let panel = (PANEL_BYTES / (width * size_of::<T>()).max(1)).max(1).next_multiple_of(TILE_ROWS);
    share_out(out, panel, &|range| {
        // SAFETY: the processor was asked above; columns have `width` numbers and so have the rows of w; ranges are disjoint, so
        // each number of the product is written by one thread.
        unsafe { multiply_panel(&w, b.as_ref(), columns, &target, range) };
    });
    Ok(result)
}

fn arranged<T: Number>(x: &View<'_, T, 2>) -> Vec<f32> {
    let mut numbers: Vec<f32> =
        (0..x.shape[0]).flat_map(|row| x.row(row)).map(|number| number.to_f32()).collect();
    for row in numbers.chunks_exact_mut(x.shape[1].max(1)) {
        arrange::<T>(row);
    }
    numbers
}

/// Rows of x, as f32 and arranged.
#[derive(Clone, Copy)]
struct Columns<'a> {
    pointers: &'a [*const f32],
    width: usize,
}

// SAFETY: the pointers are read only, and what they point to outlives the product.
unsafe impl Sync for Columns<'_> {}

/// The columns `range` of the product: those that the weight's rows of this range make.
///
/// # Safety
/// The processor has what [`super::lanes::supported`] asks for; every column is valid for `width` numbers, the width of `w`; no
/// other thread has these columns of `target`.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
unsafe fn multiply_panel<T: Number>(
    w: &View<'_, T, 2>,
    bias: Option<&View<'_, T, 1>>,
    columns: Columns<'_>,
    target: &Target<'_, T, 2>,
    range: Range<usize>,
) {
    let tiles = range.len().div_ceil(TILE_ROWS);
    let tile = |index: usize, begin: usize| -> [*const T; TILE_ROWS] {
        let mut rows = [std::ptr::null(); TILE_ROWS];
        for (offset, row) in rows.iter_mut().enumerate() {
            // A last tile that is not full repeats its last row.
            let index = (range.start + index * TILE_ROWS + offset).min(range.end - 1);
            *row = w.row(index)[begin..].as_ptr();
        }
        rows
    };
    let mut sums = Vec::new();
    for (block, pointers) in columns.pointers.chunks(BLOCK_COLUMNS).enumerate() {
        let groups = pointers.len().div_ceil(T::TILE_COLUMNS);
        // The next tile begins where this one ends; a piece of a row is followed by the next.
        let (depth, ahead) = match pointers.len() {
            0..=MOST_COLUMNS_IN_ONE_GO => (columns.width.max(1), TILE_ROWS * columns.width),
            _ => (DEPTH, DEPTH),
        };
        sums.clear();
        sums.resize(tiles * groups, [[F32x8::splat(0.0); TILE_COLUMNS]; TILE_ROWS]);
        for begin in (0..columns.width).step_by(depth) {
            let length = depth.min(columns.width - begin);
            for index in 0..tiles {
                let rows = tile(index, begin);
                for (group, (first, count)) in column_groups::<T>(pointers.len()).enumerate() {
                    with_columns!(count, C => {
                        let mut inputs = [std::ptr::null(); C];
                        for (input, pointer) in inputs.iter_mut().zip(&pointers[first..]) {
                            *input = pointer.wrapping_add(begin);
                        }
                        // SAFETY: `begin + length` is within the width, for which the caller vouches.
                        unsafe { add_to::<T, C>(&mut sums[index * groups + group], rows, inputs, length, if group == 0 { ahead } else { 0 }) };
                    });
                }
            }
        }
        for index in 0..tiles {
            let rows = tile(index, 0);
            let first_row = range.start + index * TILE_ROWS;
            for (group, (first, count)) in column_groups::<T>(pointers.len()).enumerate() {
                for column in 0..count {
                    let place = (block * BLOCK_COLUMNS + first + column) * target.stride + first_row;
                    // SAFETY: as the caller promises.
                    let place = unsafe { target.slice(place, TILE_ROWS.min(range.end - first_row)) };
                    for (row, number) in place.iter_mut().enumerate() {
                        let sum = sums[index * groups + group][row][column];
                        // SAFETY: as the caller promises.
                        let sum = unsafe { finish(sum, rows[row], pointers[first + column], columns.width) };
                        let addend = match bias {
                            Some(bias) => bias.numbers[first_row + row].to_f32(),
                            None => 0.0,
                        };
                        *number = T::from_f32(sum + addend);
                    }
                }
            }
        }
    }
}

/// Adds the products of a tile's rows with the first `C` of its columns.
///
/// # Safety
/// As for [`add_products`].
#[inline(always)]
unsafe fn add_to<T: Number, const C: usize>(
    sums: &mut Sums<TILE_ROWS, TILE_COLUMNS>,
    rows: [*const T; TILE_ROWS],
    columns: [*const f32; C],
    length: usize,
    ahead: usize,
) {
    let mut part = [[F32x8::splat(0.0); C]; TILE_ROWS];
    for row in 0..TILE_ROWS {
        part[row].copy_from_slice(&sums[row][..C]);
    }
    // SAFETY: as the caller promises.
    unsafe { add_products(&mut part, rows, columns, length, ahead) };
    for row in 0..TILE_ROWS {
        sums[row][..C].copy_from_slice(&part[row]);
    }
}

const _: () = assert!(DEPTH.is_multiple_of(STEP) && STEP == 2 * LANES);
