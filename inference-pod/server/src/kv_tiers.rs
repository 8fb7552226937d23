//! From the settings of the KV tiers to what the engine takes: the memory they need, and a fingerprint of all that decides
//! what a block holds.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use fairlead_engine::tiers::{DiskOptions, TierOptions};
use fairlead_inference_config::KvCacheConfig;
use fairlead_model::{DeviceKind, Plan, Reason};

use crate::load::FatalError;
use crate::memory;

/// Version of what the cache's blocks look like in bytes. Raise it when backend or layout change what a block holds.
const LAYOUT: u32 = 1;

/// Refuses tiers that main memory has no room for. `engine_bytes` is what else the process keeps there: on a CPU weights,
/// activations and cache. `budget_bytes` leaves a margin for what no plan counts; that is for the process to use.
///
/// # Errors
/// [`FatalError`] with the numbers.
pub fn require_memory(
    settings: &KvCacheConfig,
    engine_bytes: u64,
    budget_bytes: u64,
) -> Result<(), FatalError> {
    let tiers = settings.tier_memory_bytes();
    let left = memory::without_margin(budget_bytes).saturating_sub(engine_bytes);
    if tiers <= left {
        return Ok(());
    }
    let (field, remedy) = match (settings.host_bytes, settings.largest_host_bytes(left)) {
        (None, _) => ("kvCache.disk.path", "leave the disk tier out, or give more memory".to_owned()),
        (Some(_), 0) => ("kvCache.hostBytes", "leave the tiers out, or give more memory".to_owned()),
        (Some(_), most) => ("kvCache.hostBytes", format!("lower it to {most} or less, or give more memory")),
    };
    Err(FatalError {
        reason: Reason::DoesNotFit,
        message: format!(
            "{field}: the tiers take {tiers} bytes of main memory ({} of them for blocks on their way), but beside {engine_bytes} \
             bytes of weights, activations and cache only {left} are free; {remedy}",
            settings.transit_bytes(),
        ),
    })
}

/// What the engine takes. Without prefix sharing there are no tiers: a block would have no name.
///
/// # Errors
/// [`FatalError`] where tiers are set but prefixes are not shared, or where the model's files cannot be read.
pub fn tier_options(
    settings: &KvCacheConfig,
    folder: &Path,
    digest: Option<&str>,
    plan: &Plan,
    device: DeviceKind,
) -> Result<TierOptions, FatalError> {
    if !settings.prefix_sharing && (settings.host_bytes.is_some() || settings.disk.is_some()) {
        return Err(FatalError {
            reason: Reason::InvalidSpec,
            message: "kvCache.prefixSharing is false, but kvCache.hostBytes or kvCache.disk is set: a tier finds blocks by \
                      their prefix; share prefixes or leave the tiers out"
                .to_owned(),
        });
    }
    // Main memory forgets everything with the process, so only a disk must tell models apart.
    let fingerprint = match &settings.disk {
        Some(_) => fingerprint(folder, digest, plan, device).map_err(|error| {
            FatalError::pod(format!("kvCache.disk: the model's files could not be read for it: {error}"))
        })?,
        None => [0; 32],
    };
    Ok(options(settings, fingerprint))
}

fn options(settings: &KvCacheConfig, fingerprint: [u8; 32]) -> TierOptions {
    let disk = settings.disk.as_ref();
    TierOptions {
        host_bytes: settings.host_bytes,
        disk: disk.map(|disk| DiskOptions { path: disk.path.clone(), bytes: disk.bytes, fingerprint }),
        transit_bytes: settings.transit_bytes(),
    }
}

/// A hash of all that decides what a block holds but its tokens: the model's files, the number type, the block's size, the
/// device, and the program. `digest` is what the files have been checked against; without it every byte of the weights is
/// read once more, out of the page cache by then.
fn fingerprint(
    folder: &Path,
    digest: Option<&str>,
    plan: &Plan,
    device: DeviceKind,
) -> std::io::Result<[u8; 32]> {
    let begun = std::time::Instant::now();
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    };
    // Weights quantised while they are loaded are other weights; their bytes tell how.
    let weights = (plan.dtype, plan.weight_bytes);
    let program = (env!("CARGO_PKG_VERSION"), LAYOUT, weights, plan.block_tokens, device);
    part(format!("{program:?}").as_bytes());
    if let Some(digest) = digest {
        part(digest.as_bytes());
    } else {
        for name in model_files(folder)? {
            part(name.as_bytes());
            part(&hash_file(&folder.join(name))?);
        }
        tracing::info!(seconds = begun.elapsed().as_secs_f64(), "hashed the model's files for the disk tier");
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Files that say how weights are used, and the weights; sorted.
fn model_files(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if name.ends_with("config.json") || name.contains(".safetensors") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn hash_file(path: &Path) -> std::io::Result<[u8; 32]> {
    let (mut file, mut hasher) = (File::open(path)?, blake3::Hasher::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(*hasher.finalize().as_bytes()),
            read => drop(hasher.update(&buffer[..read])),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use fairlead_inference_config::DiskTierConfig;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn settings(host_bytes: Option<u64>, disk: Option<u64>) -> KvCacheConfig {
        let disk = disk.map(|bytes| DiskTierConfig { path: PathBuf::from("kv"), bytes });
        KvCacheConfig { host_bytes, disk, ..KvCacheConfig::default() }
    }

    #[test]
    fn tiers_must_fit_beside_the_engine() {
        let (host, both) = (settings(Some(744 * MIB), None), settings(Some(745 * MIB), Some(10_000 * MIB)));
        // A budget is nine tenths of what is free, so 900 MiB stand for 1000.
        require_memory(&host, 0, 900 * MIB).unwrap();
        require_memory(&host, 900 * MIB, 1800 * MIB).unwrap();
        require_memory(&settings(None, None), 5, 0).unwrap();
        let error = require_memory(&host, 100 * MIB, 900 * MIB).unwrap_err();
        assert_eq!(error.reason, Reason::DoesNotFit);
        assert!(
            error.message.contains("kvCache.hostBytes") && error.message.contains("1048576000"),
            "{error}"
        );
        let error = require_memory(&both, 0, 900 * MIB).unwrap_err().message;
        assert!(error.contains("268435456"), "what is on its way counts: {error}");
        assert!(error.contains("lower it to 780140544 or less"), "1000 MiB less those 256: {error}");
        require_memory(&settings(Some(780_140_544), Some(10_000 * MIB)), 0, 900 * MIB).unwrap();
    }

    #[test]
    fn where_no_tier_fits_the_remedy_is_none() {
        let of = |host, disk, budget| require_memory(&settings(host, disk), 0, budget).unwrap_err().message;
        let absurd = of(Some(u64::MAX), None, 900 * MIB);
        assert!(absurd.contains("lower it to 780140544 or less"), "{absurd}");
        let none = of(Some(MIB), Some(10_000 * MIB), 90 * MIB);
        assert!(none.starts_with("kvCache.hostBytes: ") && none.contains("leave the tiers out"), "{none}");
        let disk = of(None, Some(10_000 * MIB), 90 * MIB);
        assert!(
            disk.starts_with("kvCache.disk.path: ") && disk.contains("leave the disk tier out"),
            "{disk}"
        );
    }

    #[test]
    fn the_fingerprint_changes_with_every_byte_of_the_model_and_how_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        std::fs::write(dir.path().join("model.safetensors"), vec![1; 3 << 20]).unwrap();
        let plan = Plan {
            dtype: fairlead_model::RunDtype::F32,
            parameters: 0,
            weight_bytes: 0,
            kv_bytes_per_token: 1,
            activation_reserve_bytes: 0,
            memory_budget_bytes: 0,
            max_model_len: 1,
            block_tokens: 16,
            kv_blocks: 0,
            kv_cache_bytes: 0,
            max_cached_tokens: 0,
            fits: true,
            explanation: String::new(),
        };
        let of = |plan: &Plan, device| fingerprint(dir.path(), None, plan, device).unwrap();
        let first = of(&plan, DeviceKind::Cpu);
        std::fs::write(dir.path().join("README.md"), "other files do not count").unwrap();
        assert_eq!(of(&plan, DeviceKind::Cpu), first);
        assert_ne!(of(&plan, DeviceKind::Gpu), first);
        assert_ne!(of(&Plan { block_tokens: 32, ..plan.clone() }, DeviceKind::Cpu), first);
        assert_ne!(
            of(&Plan { dtype: fairlead_model::RunDtype::Bf16, ..plan.clone() }, DeviceKind::Cpu),
            first
        );
        assert_ne!(fingerprint(dir.path(), Some("sha256:1"), &plan, DeviceKind::Cpu).unwrap(), first);
        let mut weights = vec![1; 3 << 20];
        weights[2 << 20] = 2;
        std::fs::write(dir.path().join("model.safetensors"), weights).unwrap();
        assert_ne!(of(&plan, DeviceKind::Cpu), first);
    }

    #[test]
    fn tiers_need_shared_prefixes() {
        let plain = KvCacheConfig { prefix_sharing: false, ..settings(Some(MIB), None) };
        let plan = serde_json::from_value(serde_json::json!({
            "dtype": "f32", "parameters": 0, "weightBytes": 0, "kvBytesPerToken": 1, "activationReserveBytes": 0,
            "memoryBudgetBytes": 0, "maxModelLen": 1, "blockTokens": 16, "kvBlocks": 0, "kvCacheBytes": 0,
            "maxCachedTokens": 0, "fits": true, "explanation": "",
        }))
        .unwrap();
        let error = tier_options(&plain, Path::new("/nowhere"), None, &plan, DeviceKind::Cpu).unwrap_err();
        assert!(error.message.contains("kvCache.prefixSharing"), "{error}");
    }
}
