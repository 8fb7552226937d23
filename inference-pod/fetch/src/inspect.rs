//! What a model is, without reading its weights: config.json, the index, the header and length of each weights file.
//!
//! From a hub this takes a few kilobytes by range requests. The result is small enough for a container's termination
//! message, which is how an inspection Job hands it to the operator.

use std::path::Path;

use fairlead_model::config::{CONFIG_FILE, MAX_CONFIG_BYTES};
use fairlead_model::encoder::pipeline::{MODULES_FILE, POOLING_FILE, SENTENCE_FILE, TOKENIZER_CONFIG_FILE};
use fairlead_model::index::{INDEX_FILE, MAX_INDEX_BYTES};
use fairlead_model::safetensors_header::PREFIX_BYTES;
use fairlead_model::{
    Checkpoint, EncoderFiles, ModelShape, SafetensorsHeader, SafetensorsIndex, WeightsSummary,
};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use crate::digest::hex;
use crate::error::FetchError;
use crate::files::{self, WeightsLayout};
use crate::hub::{Hub, RangeRead};
use crate::remote_model::RemoteModel;
use crate::source_uri::SourceUri;

/// Read of a weights file at first: holds the whole header of small models, and most of the length of larger ones'.
const FIRST_READ_BYTES: u64 = 8 << 10;

const SHARDS_AT_ONCE: usize = 8;

/// What a model is. As JSON it stays below 4,096 bytes, the limit of a termination message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// What config.json, and for an encoder the files of sentence-transformers, say.
    pub config: ModelShape,
    /// What the weights amount to.
    pub weights: WeightsSummary,
    /// Weights files.
    pub weight_files: u32,
    /// Bytes of all weights files.
    pub weight_file_bytes: u64,
    /// The commit that a hub's revision stood for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Hash of all that was read; another one means another model, the same one does not prove the same weights.
    pub fingerprint: String,
}

/// Inspects a model on a hub or in a folder.
///
/// # Errors
/// Any [`FetchError`]; one from the model itself says which file and tensor is at fault.
pub async fn inspect(source: &SourceUri, hub: &Hub) -> Result<Inspection, FetchError> {
    match source {
        SourceUri::Hub { repository, revision } => {
            let model = hub.resolve(repository, revision).await?;
            let place = Place::Hub { hub, model: &model };
            let mut inspection = read(&place).await?;
            inspection.revision = Some(model.commit.clone());
            Ok(inspection)
        }
        SourceUri::Folder { path } => folder(path).await,
        SourceUri::Claim { .. } | SourceUri::Image { .. } => Err(FetchError::InvalidUri(format!(
            "{source} can be inspected only where it is mounted; give this process the folder, as file:///path"
        ))),
    }
}

/// Inspects a model in a folder.
pub(crate) async fn folder(path: &Path) -> Result<Inspection, FetchError> {
    read(&Place::Folder(path)).await
}

/// Names of the files in use in a folder.
pub(crate) struct UsedFiles {
    pub all: Vec<String>,
    pub weights: Vec<String>,
}

/// Lists the files in use in a folder.
pub(crate) async fn used_files(path: &Path) -> Result<UsedFiles, FetchError> {
    let place = Place::Folder(path);
    let names = place.names().await?;
    let layout = files::layout(&place.to_string(), &names)?;
    let (index, _) = index(&place, layout).await?;
    let weights = files::weights(&place.to_string(), &names, index.as_ref())?;
    let mut all = files::small(&names, layout);
    all.extend(weights.iter().cloned());
    all.sort();
    Ok(UsedFiles { all, weights })
}

async fn read(place: &Place<'_>) -> Result<Inspection, FetchError> {
    let names = place.names().await?;
    let layout = files::layout(&place.to_string(), &names)?;
    let config_bytes = place.small(CONFIG_FILE, MAX_CONFIG_BYTES as u64).await?;
    // Before the weights: a model that is not ours is told so by its architecture, not by its tensors' names.
    let (config, more) = shape(place, &names, &config_bytes).await?;
    let (index, index_bytes) = index(place, layout).await?;
    let files = files::weights(&place.to_string(), &names, index.as_ref())?;
    // The futures are made first: a closure inside the stream would keep the whole from being `Send`.
    let reads: Vec<_> = files.iter().map(|file| header(place, file)).collect();
    let headers: Vec<Header> = stream::iter(reads).buffered(SHARDS_AT_ONCE).try_collect().await?;

    let mut hasher = Sha256::new();
    let mut weight_file_bytes = 0u64;
    for part in
        [&config_bytes, &index_bytes].into_iter().chain(&more).chain(headers.iter().map(|header| &header.raw))
    {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    for header in &headers {
        hasher.update(header.file_bytes.to_le_bytes());
        weight_file_bytes = weight_file_bytes.saturating_add(header.file_bytes);
    }
    let parsed = files.iter().cloned().zip(headers.into_iter().map(|header| header.parsed));
    let weights = config.check(&Checkpoint::new(parsed, index.as_ref())?)?;
    Ok(Inspection {
        config,
        weights,
        weight_files: u32::try_from(files.len()).unwrap_or(u32::MAX),
        weight_file_bytes,
        revision: None,
        fingerprint: format!("sha256:{}", hex(&hasher.finalize())),
    })
}

/// Reads the model's configuration; for an encoder with the further files that make it up, which are returned.
async fn shape(
    place: &Place<'_>,
    names: &[String],
    config: &[u8],
) -> Result<(ModelShape, Vec<Vec<u8>>), FetchError> {
    if !ModelShape::is_encoder(config)? {
        return Ok((ModelShape::parse(&EncoderFiles { config, ..EncoderFiles::default() })?, Vec::new()));
    }
    let mut found = Vec::new();
    for file in [MODULES_FILE, POOLING_FILE, SENTENCE_FILE, TOKENIZER_CONFIG_FILE] {
        found.push(match names.iter().any(|name| name == file) {
            true => Some(place.small(file, MAX_CONFIG_BYTES as u64).await?),
            false => None,
        });
    }
    let file = |index: usize| found.get(index).and_then(Option::as_deref);
    let files = EncoderFiles {
        config,
        modules: file(0),
        pooling: file(1),
        sentence_bert_config: file(2),
        tokenizer_config: file(3),
    };
    Ok((ModelShape::parse(&files)?, found.into_iter().flatten().collect()))
}

async fn index(
    place: &Place<'_>,
    layout: WeightsLayout,
) -> Result<(Option<SafetensorsIndex>, Vec<u8>), FetchError> {
    match layout {
        WeightsLayout::Single => Ok((None, Vec::new())),
        WeightsLayout::Sharded => {
            let bytes = place.small(INDEX_FILE, MAX_INDEX_BYTES as u64).await?;
            Ok((Some(SafetensorsIndex::parse(&bytes)?), bytes))
        }
    }
}

struct Header {
    parsed: SafetensorsHeader,
    raw: Vec<u8>,
    file_bytes: u64,
}

async fn header(place: &Place<'_>, file: &str) -> Result<Header, FetchError> {
    let RangeRead { bytes: mut raw, file_bytes } = place.range(file, 0, FIRST_READ_BYTES).await?;
    let end = PREFIX_BYTES + SafetensorsHeader::json_bytes(file, &raw)?;
    let have = raw.len() as u64;
    if have < end && have < file_bytes {
        raw.extend(place.range(file, have, end - have).await?.bytes);
    }
    raw.truncate(usize::try_from(end).unwrap_or(usize::MAX));
    let parsed = SafetensorsHeader::parse(file, &raw)?;
    parsed.check_length(file, file_bytes)?;
    Ok(Header { parsed, raw, file_bytes })
}

/// Where files are read from.
enum Place<'a> {
    Hub { hub: &'a Hub, model: &'a RemoteModel },
    Folder(&'a Path),
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hub { hub, model } => write!(f, "{}@{} on {}", model.repository, model.commit, hub.name()),
            Self::Folder(path) => write!(f, "the folder {}", path.display()),
        }
    }
}

impl Place<'_> {
    /// Names of the files in the root and of the one in a folder that is in use, sorted.
    async fn names(&self) -> Result<Vec<String>, FetchError> {
        let mut names: Vec<String> = match self {
            Self::Hub { model, .. } => model.files.iter().map(|file| file.name.clone()).collect(),
            Self::Folder(path) => {
                let mut names = folder_names(path).await?;
                if tokio::fs::metadata(path.join(POOLING_FILE)).await.is_ok_and(|file| file.is_file()) {
                    names.push(POOLING_FILE.to_owned());
                }
                names
            }
        };
        names.sort();
        Ok(names)
    }

    async fn small(&self, file: &str, most: u64) -> Result<Vec<u8>, FetchError> {
        match self {
            Self::Hub { hub, model } => hub.read_small(model, file, most).await,
            Self::Folder(_) => Ok(self.range(file, 0, most.saturating_add(1)).await?.bytes),
        }
    }

    async fn range(&self, file: &str, start: u64, length: u64) -> Result<RangeRead, FetchError> {
        match self {
            Self::Hub { hub, model } => hub.read_range(model, file, start, length).await,
            Self::Folder(path) => {
                let path = path.join(file);
                let read = async {
                    let mut file = tokio::fs::File::open(&path).await?;
                    let file_bytes = file.metadata().await?.len();
                    tokio::io::AsyncSeekExt::seek(&mut file, std::io::SeekFrom::Start(start)).await?;
                    let mut bytes = Vec::new();
                    file.take(length).read_to_end(&mut bytes).await?;
                    Ok(RangeRead { bytes, file_bytes })
                };
                read.await.map_err(|error| FetchError::disk("read", &path, &error))
            }
        }
    }
}

async fn folder_names(path: &Path) -> Result<Vec<String>, FetchError> {
    let listed = async {
        let mut names = Vec::new();
        let mut entries = tokio::fs::read_dir(path).await?;
        while let Some(entry) = entries.next_entry().await? {
            // Follows links: mounted ConfigMaps and hub caches are made of them.
            if tokio::fs::metadata(entry.path()).await.is_ok_and(|metadata| metadata.is_file())
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    };
    listed.await.map_err(|error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => FetchError::NotFound(format!(
            "there is no folder {}: correct the path in model.uri",
            path.display()
        )),
        std::io::ErrorKind::NotADirectory => FetchError::NotFound(format!(
            "{} is a file: model.uri must name the folder that holds config.json",
            path.display()
        )),
        _ => FetchError::disk("read", path, &error),
    })
}
