//! The matrices of one adapter, laid out like the base model's: one product into the ranks of all projections that share an
//! input, one product out of the ranks of each.

use fairlead_model::lora::Projection;
use tch::{TchError, Tensor};

/// Projections as the base model computes them: those of one input are one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fused {
    /// Queries, keys and values.
    Qkv,
    /// The attention's output.
    Output,
    /// Gate and up.
    GateUp,
    /// The MLP's output.
    Down,
}

impl Fused {
    /// All of them; a layer's deltas lie in this order.
    pub(crate) const ALL: [Self; 4] = [Self::Qkv, Self::Output, Self::GateUp, Self::Down];

    /// The projections, in the order of their columns.
    pub(crate) fn projections(self) -> &'static [Projection] {
        match self {
            Self::Qkv => &[Projection::Query, Projection::Key, Projection::Value],
            Self::Output => &[Projection::Output],
            Self::GateUp => &[Projection::Gate, Projection::Up],
            Self::Down => &[Projection::Down],
        }
    }
}

/// A loaded adapter.
#[derive(Debug)]
pub(crate) struct Adapter {
    layers: Vec<[Option<Delta>; 4]>,
}

/// What an adapter adds to one fused projection.
#[derive(Debug)]
pub(crate) struct Delta {
    /// `[sum of the ranks, in]`
    down: Tensor,
    parts: Vec<DeltaPart>,
}

/// One projection's share of a [`Delta`].
#[derive(Debug)]
pub(crate) struct DeltaPart {
    /// Its rank.
    pub(crate) rank: i64,
    /// Its first column in the fused output.
    pub(crate) column: i64,
    /// Its columns.
    pub(crate) width: i64,
    /// `[rank, width]`, the adapter's scale multiplied in.
    pub(crate) up: Tensor,
}

impl Adapter {
    /// An adapter of these deltas, by layer and [`Fused::ALL`].
    pub(crate) fn new(layers: Vec<[Option<Delta>; 4]>) -> Self {
        Self { layers }
    }

    /// What it adds to a projection, if anything.
    pub(crate) fn delta(&self, layer: usize, fused: Fused) -> Option<&Delta> {
        self.layers.get(layer)?.get(fused as usize)?.as_ref()
    }
}

impl Delta {
    /// `down` holds the ranks of `parts` one below the other.
    pub(crate) fn new(down: Tensor, parts: Vec<DeltaPart>) -> Self {
        Self { down, parts }
    }

    /// Adds to `output`, `[rows, all columns]`, what `input`, `[rows, in]`, gives.
    pub(crate) fn add(&self, input: &Tensor, output: &Tensor) -> Result<(), TchError> {
        self.each_part(input, |part, ranks| {
            let _ = output.f_narrow(1, part.column, part.width)?.f_addmm_(ranks, &part.up)?;
            Ok(())
        })
    }

    /// The same for some rows of the step only: `rows`, `[count]`, each at most once.
    pub(crate) fn add_to_rows(&self, rows: &Tensor, input: &Tensor, output: &Tensor) -> Result<(), TchError> {
        self.each_part(&input.f_index_select(0, rows)?, |part, ranks| {
            let added = ranks.f_matmul(&part.up)?;
            let _ = output.f_narrow(1, part.column, part.width)?.f_index_add_(0, rows, &added)?;
            Ok(())
        })
    }

    fn each_part(
        &self,
        input: &Tensor,
        add: impl Fn(&DeltaPart, &Tensor) -> Result<(), TchError>,
    ) -> Result<(), TchError> {
        let ranks = input.f_linear::<Tensor>(&self.down, None)?;
        let mut first = 0;
        for part in &self.parts {
            add(part, &ranks.f_narrow(1, first, part.rank)?)?;
            first += part.rank;
        }
        Ok(())
    }
}
