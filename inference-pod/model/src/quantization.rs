//! Quantised weights: what a checkpoint says of its packed projections, and how a projection then lies in memory.
//!
//! Only the projections of the layers are ever quantised; embedding, norms, biases and the output projection are not.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{CONFIG_FILE, ModelConfig};
use crate::dtype::{DeviceKind, RunDtype};
use crate::error::{ModelError, clip};
use crate::fields::Fields;
use crate::tensors::{Projection, TensorKind, TensorSpec};

/// Largest group a checkpoint may have; more than the width of any model there is.
const MOST_IN_GROUP: u32 = 1 << 18;

/// Most names of projections that a checkpoint may leave as they are. An inspection must stay small.
const MOST_SKIPPED: usize = 16;

/// Sizes of a group that libtorch's 4-bit products take, largest first: scales are then read least often.
const GROUPS: [u32; 4] = [256, 128, 64, 32];

/// Rows that libtorch's 4-bit product wants a multiple of; what is missing is filled up with zeros.
const INT4_ROWS: u32 = 16;

/// Inputs that libtorch's 8-bit product wants a multiple of: it reads beyond the end of others.
const INT8_INPUTS: u32 = 32;

/// Inputs that CUDA's 4-bit product wants a multiple of, as its tiles are packed here.
const CUDA_INT4_INPUTS: u32 = 128;

/// How packed numbers lie in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PackedLayout {
    /// GPTQ as AutoGPTQ writes it: inputs in turn in each 32-bit number, zero points stored less one.
    Gptq,
    /// The same with zero points as they are.
    GptqV2,
    /// AWQ's `gemm`: outputs in each 32-bit number, in the order 0, 2, 4, 6, 1, 3, 5, 7.
    Awq,
}

/// Quantisation of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quantization {
    /// How packed numbers lie.
    pub layout: PackedLayout,
    /// Bits of a weight: 4 or 8.
    pub bits: u32,
    /// Inputs that share a scale and a zero point; `None` is all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<u32>,
    /// Whether the groups' inputs may lie scattered (act-order): then `g_idx` names each input's group.
    #[serde(default)]
    pub scattered: bool,
    /// Projections whose names hold one of these are not quantised.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<String>,
}

/// Weights that a checkpoint holds in full and the engine quantises while it loads them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoadQuantization {
    /// They stay as they are.
    #[default]
    None,
    /// 8 bits, one scale for each output.
    Int8,
    /// 4 bits, one scale and zero point for each 128 inputs of an output (64 or 32 where 128 does not divide).
    Int4,
}

/// How a projection lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightForm {
    /// In the number type the model runs in.
    Dense,
    /// A byte a weight, a scale an output.
    Int8,
    /// Half a byte a weight, a scale and a zero point for each group of inputs.
    Int4 {
        /// Inputs of a group.
        group: u32,
    },
    /// The upper and the lower half of 8 bits, each as [`WeightForm::Int4`]: libtorch has no 8-bit product with groups.
    Int4Pair {
        /// Inputs of a group.
        group: u32,
    },
}

impl Quantization {
    /// Reads `quantization_config` of a config.json; `None` if there is none.
    pub(crate) fn parse(config: Fields<'_>) -> Result<Option<Self>, ModelError> {
        let map = match config.get("quantization_config") {
            None => return Ok(None),
            Some(Value::Object(map)) => map,
            Some(_) => return Err(config.invalid("quantization_config", "must be an object")),
        };
        let fields = Fields { file: CONFIG_FILE, prefix: "quantization_config.", map };
        let method = fields.optional_text("quant_method")?.unwrap_or("none");
        let layout = match method {
            "gptq" => gptq_layout(fields)?,
            "awq" => awq_layout(fields)?,
            other => {
                let problem = format!(
                    "\"{}\" is not supported; supported are gptq and awq: use such a checkpoint, or the unquantised one with \
                     engine.quantization",
                    clip(other)
                );
                return Err(fields.unsupported("quant_method", &problem));
            }
        };
        let bits = fields.size("bits", 64)?;
        let allowed: &[u32] = if layout == PackedLayout::Awq { &[4] } else { &[4, 8] };
        if !allowed.contains(&bits) {
            let allowed = allowed.iter().map(u32::to_string).collect::<Vec<_>>().join(" or ");
            let problem = format!("is {bits}, which is not supported for {method}; supported: {allowed}");
            return Err(fields.unsupported("bits", &problem));
        }
        if fields.flag("lm_head")? {
            return Err(
                fields.unsupported("lm_head", "is true: a quantised output projection is not supported")
            );
        }
        if fields.get("dynamic").is_some_and(|value| value.as_object().is_none_or(|map| !map.is_empty())) {
            let problem = "holds settings for some projections alone, which is not supported";
            return Err(fields.unsupported("dynamic", problem));
        }
        Ok(Some(Self {
            layout,
            bits,
            group_size: group_size(fields)?,
            scattered: layout != PackedLayout::Awq && fields.flag("desc_act")?,
            skipped: skipped(fields)?,
        }))
    }

    /// Whether a projection is quantised.
    #[must_use]
    pub fn covers(&self, name: &str) -> bool {
        !self.skipped.iter().any(|skipped| name.contains(skipped.as_str()))
    }

    /// Inputs of a group of a projection with `input` inputs.
    #[must_use]
    pub fn group(&self, input: u32) -> u32 {
        self.group_size.unwrap_or(input).min(input).max(1)
    }

    /// Tensors of a quantised projection.
    pub(crate) fn tensors(&self, projection: &Projection) -> Result<Vec<TensorSpec>, ModelError> {
        let (name, out, input) = (&projection.name, projection.out, projection.input);
        let per_number = 32 / self.bits.clamp(1, 32);
        let packed_dimension = if self.layout == PackedLayout::Awq { out } else { input };
        if packed_dimension % per_number != 0 || out % per_number != 0 {
            return Err(ModelError::unsupported(
                CONFIG_FILE,
                format!("{name} of shape [{out}, {input}] cannot be packed {per_number} to a number"),
            ));
        }
        let groups = input.div_ceil(self.group(input));
        let qweight = if self.layout == PackedLayout::Awq {
            [input, out / per_number]
        } else {
            [input / per_number, out]
        };
        let packed = |part: &str, shape: &[u32], parameters: u64| {
            TensorSpec::new(format!("{name}.{part}"), shape).of_kind(TensorKind::Packed, parameters)
        };
        let mut tensors = vec![
            packed("qweight", &qweight, projection.parameters()),
            packed("qzeros", &[groups, out / per_number], 0),
            TensorSpec::new(format!("{name}.scales"), &[groups, out]).of_kind(TensorKind::Number, 0),
        ];
        if self.scattered {
            tensors.push(packed("g_idx", &[input], 0));
        }
        Ok(tensors)
    }
}

fn gptq_layout(fields: Fields<'_>) -> Result<PackedLayout, ModelError> {
    match fields.optional_text("checkpoint_format")? {
        None | Some("gptq") => Ok(PackedLayout::Gptq),
        Some("gptq_v2") => Ok(PackedLayout::GptqV2),
        Some(other) => {
            let problem = format!("\"{}\" is not supported; supported are gptq and gptq_v2", clip(other));
            Err(fields.unsupported("checkpoint_format", &problem))
        }
    }
}

fn awq_layout(fields: Fields<'_>) -> Result<PackedLayout, ModelError> {
    let version = match fields.optional_text("version")? {
        Some(version) => version,
        None => fields.optional_text("format")?.unwrap_or("gemm"),
    };
    if !version.eq_ignore_ascii_case("gemm") {
        let problem = format!("\"{}\" is not supported; supported is gemm", clip(version));
        return Err(fields.unsupported("version", &problem));
    }
    if fields.optional_flag("zero_point")? == Some(false) {
        return Err(fields.unsupported("zero_point", "is false, which is not supported for awq"));
    }
    Ok(PackedLayout::Awq)
}

fn group_size(fields: Fields<'_>) -> Result<Option<u32>, ModelError> {
    if fields.get("group_size").and_then(Value::as_i64) == Some(-1) {
        return Ok(None);
    }
    let group_size = fields.optional_size("group_size", MOST_IN_GROUP)?;
    group_size
        .map(Some)
        .ok_or_else(|| fields.invalid("group_size", "is missing; -1 is one group for all inputs"))
}

fn skipped(fields: Fields<'_>) -> Result<Vec<String>, ModelError> {
    let field = "modules_to_not_convert";
    let names = match fields.get(field) {
        None => return Ok(Vec::new()),
        Some(Value::Array(names)) => names,
        Some(_) => return Err(fields.invalid(field, "must be a list of names")),
    };
    if names.len() > MOST_SKIPPED {
        return Err(fields.unsupported(field, &format!("has more than {MOST_SKIPPED} entries")));
    }
    let name = |value: &Value| match value.as_str().map(str::trim) {
        Some(name) if (1..=80).contains(&name.len()) => Ok(name.to_owned()),
        _ => Err(fields.invalid(field, "must hold names of 1 to 80 characters")),
    };
    names.iter().map(name).collect()
}

impl ModelConfig {
    /// How a projection of the model lies in memory.
    #[must_use]
    pub fn weight_form(
        &self,
        projection: &Projection,
        device: DeviceKind,
        dtype: RunDtype,
        at_load: LoadQuantization,
    ) -> WeightForm {
        match &self.quantization {
            Some(quantization) if quantization.covers(&projection.name) => {
                let group = quantization.group(projection.input);
                WeightForm::grouped(quantization.bits, group, projection.input, device, dtype)
            }
            Some(_) => WeightForm::Dense,
            None => WeightForm::at_load(at_load, projection.input, device, dtype),
        }
    }
}

impl WeightForm {
    /// How weights with so many bits and inputs a group lie in memory, where they run on `device` in `dtype`. What libtorch
    /// has no product for is [`WeightForm::Dense`]: it is unpacked while it is loaded.
    #[must_use]
    pub fn grouped(bits: u32, group: u32, input: u32, device: DeviceKind, dtype: RunDtype) -> Self {
        let on_device = match device {
            DeviceKind::Cpu => true,
            DeviceKind::Gpu => dtype == RunDtype::Bf16 && input.is_multiple_of(CUDA_INT4_INPUTS),
        };
        let taken =
            GROUPS.into_iter().find(|size| group.is_multiple_of(*size) && input.is_multiple_of(*size));
        match taken.filter(|_| on_device && input.is_multiple_of(group.max(1))) {
            Some(group) if bits == 4 => Self::Int4 { group },
            Some(group) if bits == 8 => Self::Int4Pair { group },
            _ => Self::Dense,
        }
    }

    /// How weights lie in memory that are quantised while they are loaded.
    #[must_use]
    pub fn at_load(how: LoadQuantization, input: u32, device: DeviceKind, dtype: RunDtype) -> Self {
        match how {
            LoadQuantization::None => Self::Dense,
            LoadQuantization::Int8 if input.is_multiple_of(INT8_INPUTS) => Self::Int8,
            LoadQuantization::Int8 => Self::Dense,
            LoadQuantization::Int4 => {
                let group = GROUPS[1..].iter().copied().find(|size| input.is_multiple_of(*size));
                Self::grouped(4, group.unwrap_or(1), input, device, dtype)
            }
        }
    }

    /// Bytes of `out` x `input` weights.
    #[must_use]
    pub fn bytes(self, out: u32, input: u32, dtype: RunDtype) -> u64 {
        let times = |a: u64, b: u64| a.saturating_mul(b);
        let (rows, columns) = (u64::from(out), u64::from(input));
        let half = |group: u32| {
            let rows = u64::from(padded_rows(out));
            let scales = 2 * (columns / u64::from(group.max(1)));
            (times(rows, columns) / 2).saturating_add(times(rows, scales).saturating_mul(dtype.bytes()))
        };
        match self {
            Self::Dense => times(times(rows, columns), dtype.bytes()),
            Self::Int8 => times(rows, columns).saturating_add(rows * dtype.bytes()),
            Self::Int4 { group } => half(group),
            Self::Int4Pair { group } => times(2, half(group)),
        }
    }
}

/// Rows of a 4-bit matrix with those that fill it up.
#[must_use]
pub fn padded_rows(out: u32) -> u32 {
    out.div_ceil(INT4_ROWS).saturating_mul(INT4_ROWS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libtorch_has_no_product_for_is_dense() {
        let form =
            |bits, group, input| WeightForm::grouped(bits, group, input, DeviceKind::Cpu, RunDtype::F32);
        assert_eq!(form(4, 128, 4096), WeightForm::Int4 { group: 128 });
        assert_eq!(
            form(4, 4096, 4096),
            WeightForm::Int4 { group: 256 },
            "one group is many with the same scale"
        );
        assert_eq!(form(4, 96, 96), WeightForm::Int4 { group: 32 });
        assert_eq!(form(8, 64, 192), WeightForm::Int4Pair { group: 64 });
        assert_eq!(form(4, 16, 64), WeightForm::Dense, "groups of 16");
        assert_eq!(form(4, 64, 96), WeightForm::Dense, "the last group is cut");
        let on_gpu = |dtype, input| WeightForm::grouped(4, 128, input, DeviceKind::Gpu, dtype);
        assert_eq!(on_gpu(RunDtype::Bf16, 4096), WeightForm::Int4 { group: 128 });
        assert_eq!(on_gpu(RunDtype::F16, 4096), WeightForm::Dense);
    }

    #[test]
    fn bytes_count_weights_scales_and_zero_points() {
        let dtype = RunDtype::Bf16;
        assert_eq!(WeightForm::Dense.bytes(64, 128, dtype), 64 * 128 * 2);
        assert_eq!(WeightForm::Int8.bytes(64, 128, dtype), 64 * 128 + 64 * 2);
        assert_eq!(WeightForm::Int4 { group: 64 }.bytes(64, 128, dtype), 64 * 128 / 2 + 64 * 2 * 2 * 2);
        assert_eq!(WeightForm::Int4 { group: 64 }.bytes(50, 128, dtype), 64 * 128 / 2 + 64 * 2 * 2 * 2);
    }
}
