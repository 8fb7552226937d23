//! Which tensors an encoder needs, under the names its family gives them.

use crate::encoder::config::{EncoderConfig, EncoderFamily};
use crate::error::ModelError;
use crate::tensors::{Checkpoint, TensorSpec, WeightsSummary};

/// Names of an encoder's tensors. Those of projections and norms are without `.weight` and `.bias`; all have both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncoderNames {
    /// What all names of the encoder itself begin with: empty, or the model's name inside a classifier, such as `bert.`.
    prefix: String,
    family: EncoderFamily,
}

impl EncoderNames {
    /// The names in a checkpoint: with the family's prefix where it has that, otherwise without.
    #[must_use]
    pub fn of(config: &EncoderConfig, checkpoint: &Checkpoint) -> Self {
        let family = config.architecture.family();
        let prefix = match family {
            EncoderFamily::Bert => "bert.",
            EncoderFamily::Roberta => "roberta.",
            EncoderFamily::DistilBert => "distilbert.",
        };
        let names = Self { prefix: prefix.to_owned(), family };
        if checkpoint.get(&names.words()).is_some() { names } else { Self { prefix: String::new(), family } }
    }

    /// The embedding of tokens, `[vocabulary, hidden]`.
    #[must_use]
    pub fn words(&self) -> String {
        format!("{}embeddings.word_embeddings.weight", self.prefix)
    }

    /// The embedding of positions, `[positions, hidden]`.
    #[must_use]
    pub fn positions(&self) -> String {
        format!("{}embeddings.position_embeddings.weight", self.prefix)
    }

    /// The embedding of token types, `[types, hidden]`.
    #[must_use]
    pub fn token_types(&self) -> String {
        format!("{}embeddings.token_type_embeddings.weight", self.prefix)
    }

    /// The norm after the embeddings.
    #[must_use]
    pub fn embedding_norm(&self) -> String {
        format!("{}embeddings.LayerNorm", self.prefix)
    }

    fn layer(&self, layer: u32, bert: &str, distilbert: &str) -> String {
        match self.family {
            EncoderFamily::Bert | EncoderFamily::Roberta => {
                format!("{}encoder.layer.{layer}.{bert}", self.prefix)
            }
            EncoderFamily::DistilBert => format!("{}transformer.layer.{layer}.{distilbert}", self.prefix),
        }
    }

    /// The projections to queries, keys and values, each `[hidden, hidden]`.
    #[must_use]
    pub fn query_key_value(&self, layer: u32) -> [String; 3] {
        [
            self.layer(layer, "attention.self.query", "attention.q_lin"),
            self.layer(layer, "attention.self.key", "attention.k_lin"),
            self.layer(layer, "attention.self.value", "attention.v_lin"),
        ]
    }

    /// The projection after attention, `[hidden, hidden]`.
    #[must_use]
    pub fn attention_output(&self, layer: u32) -> String {
        self.layer(layer, "attention.output.dense", "attention.out_lin")
    }

    /// The norm after attention.
    #[must_use]
    pub fn attention_norm(&self, layer: u32) -> String {
        self.layer(layer, "attention.output.LayerNorm", "sa_layer_norm")
    }

    /// The MLP's first projection, `[intermediate, hidden]`.
    #[must_use]
    pub fn mlp_input(&self, layer: u32) -> String {
        self.layer(layer, "intermediate.dense", "ffn.lin1")
    }

    /// The MLP's second projection, `[hidden, intermediate]`.
    #[must_use]
    pub fn mlp_output(&self, layer: u32) -> String {
        self.layer(layer, "output.dense", "ffn.lin2")
    }

    /// The norm after the MLP.
    #[must_use]
    pub fn mlp_norm(&self, layer: u32) -> String {
        self.layer(layer, "output.LayerNorm", "output_layer_norm")
    }

    /// A classifier's first projection, `[hidden, hidden]`.
    #[must_use]
    pub fn head_input(&self) -> String {
        match self.family {
            EncoderFamily::Bert => format!("{}pooler.dense", self.prefix),
            EncoderFamily::Roberta => "classifier.dense".to_owned(),
            EncoderFamily::DistilBert => "pre_classifier".to_owned(),
        }
    }

    /// A classifier's second projection, `[1, hidden]`.
    #[must_use]
    pub fn head_output(&self) -> String {
        match self.family {
            EncoderFamily::Bert | EncoderFamily::DistilBert => "classifier".to_owned(),
            EncoderFamily::Roberta => "classifier.out_proj".to_owned(),
        }
    }
}

impl EncoderConfig {
    /// Every tensor that the engine loads, in the order in which it uses them. A pooler that makes no score is not among
    /// them: sentence-transformers pools by itself.
    #[must_use]
    pub fn tensors(&self, names: &EncoderNames) -> Vec<TensorSpec> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let mut tensors = vec![
            TensorSpec::new(names.words(), &[self.vocab_size, hidden]),
            TensorSpec::new(names.positions(), &[self.max_position_embeddings, hidden]),
        ];
        if self.type_vocab_size > 0 {
            tensors.push(TensorSpec::new(names.token_types(), &[self.type_vocab_size, hidden]));
        }
        let mut pair = |name: String, shape: &[u32]| {
            tensors.push(TensorSpec::new(format!("{name}.weight"), shape));
            // Of a projection one for each row, of a norm one for each element: the first dimension of both.
            tensors.push(TensorSpec::new(format!("{name}.bias"), shape.get(..1).unwrap_or_default()));
        };
        pair(names.embedding_norm(), &[hidden]);
        for layer in 0..self.num_hidden_layers {
            for name in names.query_key_value(layer) {
                pair(name, &[hidden, hidden]);
            }
            pair(names.attention_output(layer), &[hidden, hidden]);
            pair(names.attention_norm(layer), &[hidden]);
            pair(names.mlp_input(layer), &[inner, hidden]);
            pair(names.mlp_output(layer), &[hidden, inner]);
            pair(names.mlp_norm(layer), &[hidden]);
        }
        if self.architecture.is_classifier() {
            pair(names.head_input(), &[hidden, hidden]);
            pair(names.head_output(), &[1, hidden]);
        }
        tensors
    }

    /// Checks a checkpoint against this configuration.
    ///
    /// # Errors
    /// See [`Checkpoint::check`].
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<WeightsSummary, ModelError> {
        let tensors = self.tensors(&EncoderNames::of(self, checkpoint));
        checkpoint.check_tensors(&tensors, self.architecture.as_str(), self.num_hidden_layers)
    }
}
