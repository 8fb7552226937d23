//! Tensors as slices: the checks that make raw memory safe to hand to a kernel.

use std::cell::UnsafeCell;

use tch::{Device, TchError, Tensor};

use super::number::Element;

/// Checks that a tensor is on the CPU, holds numbers of this type, and has `dimensions` of which all but the first are row-major.
/// Returns its sizes and the distance between its rows.
fn check<T: Element, const N: usize>(tensor: &Tensor, name: &str) -> Result<([usize; N], usize), TchError> {
    let wrong = |what: String| TchError::Shape(format!("{name} {what}"));
    if tensor.device() != Device::Cpu {
        return Err(wrong("is not on the CPU".to_owned()));
    }
    if tensor.f_kind()? != T::KIND {
        return Err(wrong(format!("holds {:?}, not {:?}", tensor.kind(), T::KIND)));
    }
    let (sizes, strides) = (tensor.size(), tensor.stride());
    let mut shape = [0; N];
    if sizes.len() != N {
        return Err(wrong(format!("has {} dimensions, not {N}", sizes.len())));
    }
    for (target, size) in shape.iter_mut().zip(&sizes) {
        *target = usize::try_from(*size).map_err(|_| wrong("has a negative size".to_owned()))?;
    }
    let mut row_major = 1;
    for (size, stride) in sizes.iter().zip(&strides).skip(1).rev() {
        if *stride != row_major && *size != 1 {
            return Err(wrong(format!("has strides {strides:?}; within a row it must be row-major")));
        }
        row_major *= size;
    }
    let stride = if sizes[0] > 1 { strides[0] } else { row_major };
    match usize::try_from(stride) {
        Ok(stride) if stride >= row_major as usize => Ok((shape, stride)),
        _ => Err(wrong(format!("has rows that overlap ({strides:?})"))),
    }
}

/// The numbers of a CPU tensor from its first to its last, with its sizes and the distance between its rows.
pub(crate) struct View<'a, T, const N: usize> {
    /// Sizes of the dimensions.
    pub(crate) shape: [usize; N],
    /// From the beginning of a row to that of the next; a row is all that the first dimension counts.
    pub(crate) stride: usize,
    /// All rows and, where they are not adjacent, what lies between them.
    pub(crate) numbers: &'a [T],
}

impl<'a, T: Element, const N: usize> View<'a, T, N> {
    /// Reads `tensor`; `name` is for the error. Nobody writes to its memory while the view lives: one thread owns all tensors,
    /// and that thread is the one that holds the view.
    pub(crate) fn of(tensor: &'a Tensor, name: &str) -> Result<Self, TchError> {
        let (shape, stride) = check::<T, N>(tensor, name)?;
        let length = span(&shape, stride);
        let numbers = if length == 0 {
            &[][..]
        } else {
            // SAFETY: libtorch keeps a tensor's numbers aligned and initialised, or, after `empty`, at least mapped, and any bits
            // are a number. `length` ends with the last element that sizes and strides reach, as `check` has found them.
            unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<T>().cast_const(), length) }
        };
        Ok(Self { shape, stride, numbers })
    }

    /// Numbers in a row.
    pub(crate) fn width(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// One row.
    pub(crate) fn row(&self, row: usize) -> &'a [T] {
        &self.numbers[row * self.stride..][..self.width()]
    }
}

/// Elements from the first to the last, both included.
fn span<const N: usize>(shape: &[usize; N], stride: usize) -> usize {
    let width: usize = shape[1..].iter().product();
    if shape[0] == 0 || width == 0 { 0 } else { (shape[0] - 1) * stride + width }
}

/// The numbers of a CPU tensor, for several threads to write to, each its own ones.
pub(crate) struct Target<'a, T, const N: usize> {
    /// Sizes of the dimensions.
    pub(crate) shape: [usize; N],
    /// See [`View::stride`].
    pub(crate) stride: usize,
    numbers: &'a [UnsafeCell<T>],
}

// SAFETY: the only access to the cells is through unsafe functions whose callers promise not to touch the same ones.
unsafe impl<T: Send, const N: usize> Sync for Target<'_, T, N> {}

impl<'a, T: Element, const N: usize> Target<'a, T, N> {
    /// Writes to `tensor`; `name` is for the error. Nobody else reads or writes what lies between the first and the last of its
    /// numbers while this lives.
    pub(crate) fn of(tensor: &'a Tensor, name: &str) -> Result<Self, TchError> {
        let (shape, stride) = check::<T, N>(tensor, name)?;
        let length = span(&shape, stride);
        let numbers = if length == 0 {
            &[][..]
        } else {
            // SAFETY: as in View::of; cells have the layout of what they hold.
            unsafe {
                std::slice::from_raw_parts(tensor.data_ptr().cast::<UnsafeCell<T>>().cast_const(), length)
            }
        };
        Ok(Self { shape, stride, numbers })
    }

    /// The numbers `begin .. begin + length`.
    ///
    /// # Safety
    /// No other thread has any of them at the same time, nor this one twice.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, begin: usize, length: usize) -> &mut [T] {
        let cells = &self.numbers[begin..][..length];
        // SAFETY: the cells are in bounds, UnsafeCell allows writing through a shared reference, and the caller promises that
        // nobody else has these.
        unsafe { std::slice::from_raw_parts_mut(cells.as_ptr().cast::<T>().cast_mut(), length) }
    }
}
