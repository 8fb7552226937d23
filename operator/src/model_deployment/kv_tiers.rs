//! The KV cache's tiers: what `spec.kvCache` means for the engine's settings, for the pod's memory and for its volumes. Pure.

use std::path::PathBuf;

use fairlead_crds::model_deployment::{KvCacheSpec, KvTier, KvTierName, KvTierVolume};
use fairlead_inference_config::{DiskTierConfig, KvCacheConfig};
use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, PersistentVolumeClaimVolumeSource, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::build::pod::mount;
use super::validate::{Resources, invalid};
use crate::error::Error;
use crate::quantity;

/// Where the disk tier lies in the pod.
const DIR: &str = "/kv";
/// Name of its volume.
const VOLUME: &str = "kv";
/// Share of the volume that the engine fills; the rest is for the file system itself and a file that is being written.
const FILLED_PERCENT: u64 = 95;

/// The tiers, checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KvTiers {
    /// As the engine reads them.
    pub config: KvCacheConfig,
    /// Where the disk tier's files lie, where there is one.
    disk: Option<DiskVolume>,
}

#[derive(Clone, Debug, PartialEq)]
enum DiskVolume {
    /// As long as the pod.
    Scratch(Quantity),
    /// A claim.
    Claim(String),
}

/// Checks the tiers.
///
/// # Errors
/// [`Error::Invalid`] that names the field and the remedy.
pub fn validate(spec: &KvCacheSpec) -> Result<KvTiers, Error> {
    let KvCacheSpec { block_tokens: _, prefix_sharing, tiers } = spec;
    let mut result = KvTiers {
        config: KvCacheConfig { prefix_sharing: prefix_sharing.unwrap_or(true), ..KvCacheConfig::default() },
        disk: None,
    };
    if !tiers.is_empty() && !result.config.prefix_sharing {
        return Err(invalid(
            "spec.kvCache.tiers need spec.kvCache.prefixSharing: a tier finds blocks by their prefix; set it to true or leave the \
             tiers out",
        ));
    }
    for KvTier { name, memory, size, volume } in tiers {
        match name {
            KvTierName::Host if result.disk.is_some() => {
                return Err(invalid("spec.kvCache.tiers: host comes before disk; exchange them"));
            }
            KvTierName::Host if result.config.host_bytes.is_some() => return Err(twice("host")),
            KvTierName::Host => {
                if size.is_some() || volume.is_some() {
                    return Err(invalid(
                        "spec.kvCache.tiers: the tier host has memory, and neither size nor volume; remove them",
                    ));
                }
                result.config.host_bytes = Some(bytes("memory of the tier host", memory.as_ref())?);
            }
            KvTierName::Disk if result.disk.is_some() => return Err(twice("disk")),
            KvTierName::Disk => {
                if memory.is_some() {
                    return Err(invalid(
                        "spec.kvCache.tiers: the tier disk has size, and no memory; remove it",
                    ));
                }
                let whole = bytes("size of the tier disk", size.as_ref())?;
                let filled = whole / 100 * FILLED_PERCENT;
                result.config.disk = Some(DiskTierConfig { path: PathBuf::from(DIR), bytes: filled });
                result.disk = Some(disk_volume(volume.as_ref(), size.as_ref())?);
            }
        }
    }
    Ok(result)
}

fn twice(name: &str) -> Error {
    invalid(format!("spec.kvCache.tiers has {name} twice; leave one out"))
}

fn bytes(what: &str, value: Option<&Quantity>) -> Result<u64, Error> {
    let text = value.map_or("absent", |value| &value.0);
    quantity::bytes(text).filter(|bytes| *bytes > 0).ok_or_else(|| {
        invalid(format!(
            "spec.kvCache.tiers: the {what} is {text}; it must be a positive quantity, for example 32Gi"
        ))
    })
}

fn disk_volume(volume: Option<&KvTierVolume>, size: Option<&Quantity>) -> Result<DiskVolume, Error> {
    let scratch = || DiskVolume::Scratch(size.cloned().unwrap_or_default());
    match volume {
        None => Ok(scratch()),
        Some(KvTierVolume { claim: None, empty_dir: Some(_) }) => Ok(scratch()),
        Some(KvTierVolume { claim: Some(claim), empty_dir: None }) if !claim.is_empty() => {
            Ok(DiskVolume::Claim(claim.clone()))
        }
        Some(_) => Err(invalid(
            "spec.kvCache.tiers: the volume of the tier disk has either claim, the name of a PersistentVolumeClaim of this \
             namespace, or emptyDir",
        )),
    }
}

impl KvTiers {
    /// Memory request and limit of the engine container: what the spec gives it, and what the tiers take beside that.
    pub fn container_memory(&self, resources: &Resources) -> Quantity {
        const MIB: u64 = 1 << 20;
        match self.config.tier_memory_bytes() {
            0 => resources.memory.clone(),
            tiers => Quantity(format!("{}Mi", resources.memory_bytes.saturating_add(tiers).div_ceil(MIB))),
        }
    }

    /// The disk tier's volume.
    pub fn volume(&self) -> Option<Volume> {
        let name = VOLUME.to_owned();
        Some(match self.disk.as_ref()? {
            DiskVolume::Scratch(size) => Volume {
                name,
                empty_dir: Some(EmptyDirVolumeSource {
                    size_limit: Some(size.clone()),
                    ..EmptyDirVolumeSource::default()
                }),
                ..Volume::default()
            },
            DiskVolume::Claim(claim) => Volume {
                name,
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim.clone(),
                    read_only: None,
                }),
                ..Volume::default()
            },
        })
    }

    /// Where the engine's container has it.
    pub fn mount(&self) -> Option<VolumeMount> {
        self.disk.as_ref().map(|_| mount(VOLUME, DIR, false))
    }

    /// Whether a volume that belongs to nobody must be made writable for the pod's user.
    pub fn needs_group(&self) -> bool {
        matches!(self.disk, Some(DiskVolume::Claim(_)))
    }
}
