//! `/v1/rerank`: request and answer, in the shape that Cohere, Jina and vLLM share.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::embedding::{EncodingUsage, Truncation};
use crate::error::ApiError;
use crate::fields::{Fields, wrong};
use crate::generation::{parse_model, to_u32};
use crate::json::{Json, json_of, parse_json};

/// Most documents in one request.
pub const MAX_DOCUMENTS: usize = 2048;

/// A rerank request whose shape, types and ranges are right.
#[derive(Clone, Debug, PartialEq)]
pub struct RerankRequest {
    /// The model the client names.
    pub model: String,
    /// What documents are scored against.
    pub query: String,
    /// At least one document.
    pub documents: Vec<String>,
    /// Results wanted, best first; `None` is all.
    pub top_n: Option<u32>,
    /// Repeat the documents in the answer.
    pub return_documents: bool,
    /// What becomes of a query and document that are too long together.
    pub truncation: Truncation,
}

impl RerankRequest {
    /// Reads a request body.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn from_slice(body: &[u8]) -> Result<Self, ApiError> {
        Self::from_json(&parse_json(body)?)
    }

    /// Reads a request that is a value already.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn from_value(value: &Value) -> Result<Self, ApiError> {
        Self::from_json(&json_of(value))
    }

    /// Reads a request that is JSON already.
    ///
    /// # Errors
    /// 400 naming the field and the remedy.
    pub fn from_json(value: &Json<'_>) -> Result<Self, ApiError> {
        let fields = Fields::root(value)?;
        let Some(query) = fields.string("query")? else {
            return Err(ApiError::invalid(
                "query",
                "query is required: send the text to score documents against",
            ));
        };
        Ok(Self {
            model: parse_model(&fields)?,
            query: query.to_owned(),
            documents: parse_documents(&fields)?,
            top_n: fields.integer("top_n", 1..=i64::from(u32::MAX))?.map(to_u32),
            return_documents: fields.boolean("return_documents")?.unwrap_or(false),
            truncation: Truncation::parse(&fields)?,
        })
    }
}

fn parse_documents(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let expected = "an array of strings or of objects with a text";
    let documents = match fields.array("documents")? {
        None => {
            return Err(ApiError::invalid("documents", format!("documents is required: send {expected}")));
        }
        Some([]) => {
            return Err(ApiError::invalid(
                "documents",
                format!("documents is an empty array; send {expected}"),
            ));
        }
        Some(documents) => documents,
    };
    if documents.len() > MAX_DOCUMENTS {
        let message = format!(
            "documents has {} entries, but at most {MAX_DOCUMENTS} are allowed; send fewer",
            documents.len()
        );
        return Err(ApiError::invalid("documents", message));
    }
    let parse = |(index, document): (usize, &Json<'_>)| match document {
        Json::Str(text) => Ok(text.to_string()),
        Json::Object(_) => {
            let fields = Fields::item("documents", index, document)?;
            let missing = || {
                let path = fields.name("text");
                let message = format!("{path} is required; only documents of text are scored");
                ApiError::invalid(path, message)
            };
            Ok(fields.string("text")?.ok_or_else(missing)?.to_owned())
        }
        other => Err(wrong(format!("documents[{index}]"), "a string or an object with a text", other)),
    };
    documents.iter().enumerate().map(parse).collect()
}

/// The answer to a rerank request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RerankAnswer {
    /// Name of this answer, `rerank-…`.
    pub id: String,
    /// The model's public name.
    pub model: String,
    /// Tokens read.
    pub usage: EncodingUsage,
    /// Documents, the most relevant first.
    pub results: Vec<RerankResult>,
}

/// One document's score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RerankResult {
    /// Number of the document in the request.
    pub index: u32,
    /// How relevant it is; what range that has is the model's choice.
    pub relevance_score: f32,
    /// The document, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<RerankDocument>,
}

/// A document of a rerank answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RerankDocument {
    /// Its text.
    pub text: String,
}
