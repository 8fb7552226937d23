//! From the tokens' vectors to what a request gets: one vector, or one score.

use fairlead_model::encoder::{
    EncoderConfig, EncoderFamily, EncoderNames, Pipeline, Pooling, ScoreActivation,
};
use tch::{Device, Kind, TchError, Tensor};

use crate::encoder::batch::{Batch, Group};
use crate::error::LoadError;
use crate::layers::Linear;
use crate::weights::Weights;

/// Least length a vector is divided by, as `torch.nn.functional.normalize` has it.
const SHORTEST: f64 = 1e-12;

pub(super) enum Output {
    /// A vector, as sentence-transformers pools it.
    Vector { pipeline: Pipeline, hidden_size: i64 },
    /// A cross-encoder's score of the first token.
    Score { input: Linear, output: Linear, family: EncoderFamily, activation: ScoreActivation },
}

impl Output {
    pub(super) fn load(
        weights: &mut Weights<'_>,
        names: &EncoderNames,
        config: &EncoderConfig,
    ) -> Result<Self, LoadError> {
        let Some(activation) = config.score_activation else {
            let hidden_size = i64::from(config.hidden_size);
            return Ok(Self::Vector { pipeline: config.pipeline, hidden_size });
        };
        Ok(Self::Score {
            input: Linear::load(weights, &[names.head_input()], true)?,
            output: Linear::load(weights, &[names.head_output()], true)?,
            family: config.architecture.family(),
            activation,
        })
    }

    /// `[inputs, numbers]` in f32.
    pub(super) fn forward(&self, hidden: &Tensor, batch: &Batch, device: Device) -> Result<Tensor, TchError> {
        match self {
            Self::Vector { pipeline, hidden_size } => {
                let groups: Vec<Tensor> = batch
                    .groups
                    .iter()
                    .map(|group| pool(hidden, group, pipeline.pooling, *hidden_size))
                    .collect::<Result<_, _>>()?;
                let pooled = Tensor::f_cat(&groups, 0)?;
                if !pipeline.normalize {
                    return Ok(pooled);
                }
                let lengths = pooled.f_norm_scalaropt_dim(2.0, [1], true)?.f_clamp_min(SHORTEST)?;
                pooled.f_div(&lengths)
            }
            Self::Score { input, output, family, activation } => {
                let rows = Tensor::f_from_slice(&batch.first_rows)?.f_to_device(device)?;
                let first = input.forward(&hidden.f_index_select(0, &rows)?)?;
                let first = match family {
                    EncoderFamily::Bert | EncoderFamily::Roberta => first.f_tanh()?,
                    EncoderFamily::DistilBert => first.f_relu()?,
                };
                let score = output.forward(&first)?.f_to_kind(Kind::Float)?;
                match activation {
                    ScoreActivation::Sigmoid => score.f_sigmoid(),
                    ScoreActivation::Identity => Ok(score),
                }
            }
        }
    }
}

/// `[the group's inputs, hidden]` in f32, whatever the model runs in: sums of many numbers lose too much otherwise.
fn pool(hidden: &Tensor, group: &Group, pooling: Pooling, hidden_size: i64) -> Result<Tensor, TchError> {
    let tokens = hidden.f_narrow(0, group.first_row, group.inputs * group.length)?.f_view([
        group.inputs,
        group.length,
        hidden_size,
    ])?;
    match pooling {
        Pooling::Mean => tokens.f_mean_dim([1_i64].as_slice(), false, Kind::Float),
        Pooling::Cls => tokens.f_select(1, 0)?.f_to_kind(Kind::Float),
        Pooling::Max => tokens.f_amax([1_i64].as_slice(), false)?.f_to_kind(Kind::Float),
    }
}
