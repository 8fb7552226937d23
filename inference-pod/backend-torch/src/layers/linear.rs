//! A projection: matrix products for all tokens of a step.

use fairlead_model::WeightForm;
use tch::{TchError, Tensor};

use crate::error::LoadError;
use crate::kernels::Kernels;
use crate::quantized::{GroupedWeights, Int4Weight, Int8Weight};
use crate::weights::Weights;

/// `x W^T + b`.
pub(crate) struct Linear {
    /// Matrices of the same input, whose outputs come one after the other. One, but where a quantised checkpoint groups the
    /// inputs of projections differently that could be one.
    parts: Vec<Matrix>,
    /// `[out]`
    bias: Option<Tensor>,
    kernels: Kernels,
}

/// A matrix as it lies in memory.
enum Matrix {
    /// `[out, in]`
    Dense(Tensor),
    Int8(Int8Weight),
    Int4(Int4Weight),
}

impl Linear {
    /// Loads one projection, or several of the same input as one. `names` are those of the checkpoint, less `.weight`.
    pub(crate) fn load(weights: &mut Weights<'_>, names: &[String], bias: bool) -> Result<Self, LoadError> {
        let of = |part: &str| -> Vec<String> { names.iter().map(|name| format!("{name}.{part}")).collect() };
        let parts = if names.iter().any(|name| weights.is_packed(name)) {
            load_packed(weights, names)?
        } else {
            vec![load_full(weights, names, &of("weight"))?]
        };
        let bias = bias.then(|| weights.load_stacked(&of("bias"))).transpose()?;
        Ok(Self { parts, bias, kernels: weights.kernels() })
    }

    /// A projection by a matrix that another layer has loaded (a tied output).
    pub(crate) fn shared(weight: &Tensor, kernels: Kernels) -> Self {
        Self { parts: vec![Matrix::Dense(weight.shallow_clone())], bias: None, kernels }
    }

    /// `[tokens, in]` to `[tokens, out]`.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let mut output = match self.parts.as_slice() {
            [Matrix::Dense(weight)] => return self.kernels.linear(input, weight, self.bias.as_ref()),
            [one] => one.forward(input)?,
            parts => {
                let outputs = parts.iter().map(|part| part.forward(input)).collect::<Result<Vec<_>, _>>()?;
                Tensor::f_cat(&outputs, 1)?
            }
        };
        if let Some(bias) = &self.bias {
            let _ = output.f_add_(bias)?;
        }
        Ok(output)
    }
}

impl Matrix {
    /// Tensors that stay in memory.
    fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::Dense(weight) => vec![weight],
            Self::Int8(weight) => weight.tensors().collect(),
            Self::Int4(weight) => weight.tensors().collect(),
        }
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Dense(weight) => input.f_linear::<Tensor>(weight, None),
            Self::Int8(weight) => weight.forward(input),
            Self::Int4(weight) => weight.forward(input),
        }
    }
}

/// Weights that the checkpoint holds in full: as they are, or quantised now.
fn load_full(weights: &mut Weights<'_>, names: &[String], tensors: &[String]) -> Result<Matrix, LoadError> {
    let form = names.first().map_or(WeightForm::Dense, |name| weights.form(name));
    let torch = LoadError::torch("quantising weights");
    let (kind, device) = (weights.kind(), weights.device());
    let matrix = match form {
        WeightForm::Dense | WeightForm::Int4Pair { .. } => {
            return Ok(Matrix::Dense(weights.load_stacked(tensors)?));
        }
        WeightForm::Int8 => {
            let full = weights.load_stacked_f32(tensors)?;
            Matrix::Int8(Int8Weight::round(&full, kind, device).map_err(&torch)?)
        }
        WeightForm::Int4 { group } => {
            let group = i64::from(group);
            let rounded =
                GroupedWeights::round(&weights.load_stacked_f32(tensors)?, group).map_err(&torch)?;
            match Int4Weight::pack(rounded, 4, group, kind, device).map_err(&torch)? {
                Some(packed) => Matrix::Int4(packed),
                None => return Ok(Matrix::Dense(weights.load_stacked(tensors)?)),
            }
        }
    };
    weights.count_kept(matrix.tensors());
    Ok(matrix)
}

/// Weights of which at least some are packed in the checkpoint.
fn load_packed(weights: &mut Weights<'_>, names: &[String]) -> Result<Vec<Matrix>, LoadError> {
    let torch = LoadError::torch("unpacking quantised weights");
    let Some(quantization) = weights.quantization().cloned() else { return Ok(Vec::new()) };
    if names.iter().all(|name| weights.is_packed(name)) {
        let parts = names
            .iter()
            .map(|name| GroupedWeights::load(weights, name, &quantization))
            .collect::<Result<Vec<_>, _>>()?;
        let form = names.first().map_or(WeightForm::Dense, |name| weights.form(name));
        let grouped = match GroupedWeights::stack(&parts).map_err(&torch)? {
            Some(stacked) => vec![stacked],
            None => parts,
        };
        return grouped
            .into_iter()
            .map(|part| packed_matrix(weights, part, quantization.bits, form))
            .collect();
    }
    let mut matrices = Vec::with_capacity(names.len());
    for name in names {
        matrices.push(if weights.is_packed(name) {
            let form = weights.form(name);
            let grouped = GroupedWeights::load(weights, name, &quantization)?;
            packed_matrix(weights, grouped, quantization.bits, form)?
        } else {
            Matrix::Dense(weights.load(&format!("{name}.weight"))?)
        });
    }
    Ok(matrices)
}

/// Lays packed weights out in memory as `form` says, or unpacks them.
fn packed_matrix(
    weights: &mut Weights<'_>,
    grouped: GroupedWeights,
    bits: u32,
    form: WeightForm,
) -> Result<Matrix, LoadError> {
    let torch = LoadError::torch("unpacking quantised weights");
    let (kind, device) = (weights.kind(), weights.device());
    let full = |grouped: &GroupedWeights| grouped.full()?.f_to_kind(kind)?.f_to_device(device);
    let packed = match form {
        WeightForm::Int4 { group } | WeightForm::Int4Pair { group } => {
            let spare = grouped.shallow_clone();
            match Int4Weight::pack(grouped, bits, i64::from(group), kind, device).map_err(&torch)? {
                Some(packed) => Ok(Matrix::Int4(packed)),
                None => Err(spare),
            }
        }
        WeightForm::Dense | WeightForm::Int8 => Err(grouped),
    };
    let matrix = match packed {
        Ok(matrix) => matrix,
        Err(grouped) => {
            weights.count_unpacked();
            Matrix::Dense(full(&grouped).map_err(&torch)?)
        }
    };
    weights.count_kept(matrix.tensors());
    Ok(matrix)
}
