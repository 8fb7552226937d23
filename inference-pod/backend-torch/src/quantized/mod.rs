//! Projections whose weights take 8 or 4 bits: from a checkpoint's packed tensors, or from full weights, to libtorch's
//! products of full activations with quantised weights.
//!
//! [`grouped::GroupedWeights`] is the one form that every source is read into: small whole numbers with a scale and a zero
//! point for each group of inputs. From there it goes to [`int4::Int4Weight`] or, where libtorch has no product for its
//! shape, to full weights. Which of them is decided by [`fairlead_model::WeightForm`], so that the memory plan and the
//! loader agree.

mod grouped;
mod int4;
mod int8;
mod unpack;

pub(crate) use grouped::GroupedWeights;
pub(crate) use int4::Int4Weight;
pub(crate) use int8::Int8Weight;
