//! The paged cache of keys and values: fixed blocks, allocated once.
//!
//! Which block belongs to whom is the engine's business; here a slot is a number. Slot `block * block_tokens + offset` holds
//! one token's keys and values, in every layer.

use std::sync::Arc;

use fairlead_engine::backend::{BlockBytes, BlockCopy, BlockId, BlockLoad, KvCapacity};
use fairlead_model::{ModelConfig, RunDtype};
use tch::{Device, Kind, TchError, Tensor};

use crate::device::{ComputeDevice, torch_kind};
use crate::error::LoadError;

/// Keys and values of all layers.
pub(crate) struct KvCache {
    layers: Vec<LayerCache>,
    capacity: KvCapacity,
}

/// Keys and values of one layer.
pub(crate) struct LayerCache {
    /// `[slots, kv_heads, head_dim]`
    keys: Tensor,
    /// `[slots, kv_heads, head_dim]`
    values: Tensor,
    block_tokens: i64,
}

impl KvCache {
    /// Allocates as many whole blocks as `bytes` hold, and takes the memory at once: what does not fit fails here, not under
    /// load. Zeros matter too: attention reads whole blocks, and what it then masks must still be finite.
    pub(crate) fn allocate(
        config: &ModelConfig,
        dtype: RunDtype,
        device: ComputeDevice,
        block_tokens: u32,
        bytes: u64,
    ) -> Result<Self, LoadError> {
        let token_bytes = 2
            * u64::from(config.num_hidden_layers)
            * u64::from(config.num_key_value_heads)
            * u64::from(config.head_dim)
            * dtype.bytes();
        let block_bytes = token_bytes * u64::from(block_tokens.max(1));
        let blocks = u32::try_from(bytes / block_bytes).unwrap_or(u32::MAX).min(i32::MAX as u32);
        if blocks < 2 {
            return Err(LoadError::Setting {
                field: "kvCache.memory",
                problem: format!(
                    "is {bytes} bytes, but one block of {block_tokens} tokens takes {block_bytes} and two are the least; \
                     give it more memory"
                ),
            });
        }
        let needed = u64::from(blocks) * block_bytes;
        device.require_memory(needed, "making the KV cache")?;
        let (kind, device) = (torch_kind(dtype), device.torch());
        let slots = i64::from(blocks) * i64::from(block_tokens);
        let shape = [slots, i64::from(config.num_key_value_heads), i64::from(config.head_dim)];
        let layers = (0..config.num_hidden_layers)
            .map(|_| {
                Ok(LayerCache {
                    keys: Tensor::f_zeros(shape, (kind, device))?,
                    values: Tensor::f_zeros(shape, (kind, device))?,
                    block_tokens: i64::from(block_tokens),
                })
            })
            .collect::<Result<_, TchError>>()
            .map_err(LoadError::torch("making the KV cache"))?;
        Ok(Self { layers, capacity: KvCapacity { blocks, block_tokens, block_bytes } })
    }

    pub(crate) fn capacity(&self) -> KvCapacity {
        self.capacity
    }

    /// Makes numbers in these blocks finite that are not; all others stay. For blocks of a sequence that went wrong: whoever
    /// gets them next reads whole blocks, and not even a mask hides a NaN.
    pub(crate) fn scrub(&mut self, blocks: &[i64]) -> Result<(), TchError> {
        for layer in &mut self.layers {
            let blocks = Tensor::f_from_slice(blocks)?.f_to_device(layer.keys.device())?;
            for cache in [&layer.keys, &layer.values] {
                let mut by_block = layer.by_block(cache)?;
                let clean = by_block.f_index_select(0, &blocks)?.f_nan_to_num(0.0, 0.0, 0.0)?;
                let _ = by_block.f_index_copy_(0, &blocks, &clean)?;
            }
        }
        Ok(())
    }

    /// Copies whole blocks in the order given.
    pub(crate) fn copy(&mut self, copies: &[BlockCopy]) -> Result<(), TchError> {
        for layer in &self.layers {
            for cache in [&layer.keys, &layer.values] {
                let by_block = layer.by_block(cache)?;
                for copy in copies {
                    let from = by_block.f_get(i64::from(copy.from))?;
                    by_block.f_get(i64::from(copy.to))?.f_copy_(&from)?;
                }
            }
        }
        Ok(())
    }

    /// What a block holds: for each layer its keys and then its values, each in the cache's number type.
    pub(crate) fn read(&self, block: BlockId) -> Result<BlockBytes, TchError> {
        let mut bytes = vec![0_u8; self.capacity.block_bytes as usize];
        let parts = self.layers.iter().flat_map(|layer| [(layer, &layer.keys), (layer, &layer.values)]);
        let size = bytes.len() / (2 * self.layers.len()).max(1);
        for ((layer, cache), target) in parts.zip(bytes.chunks_exact_mut(size.max(1))) {
            let row = layer.by_block(cache)?.f_get(i64::from(block))?.f_to_device(Device::Cpu)?;
            row.f_view_dtype(Kind::Uint8)?.f_copy_data(target, size)?;
        }
        Ok(Arc::from(bytes))
    }

    /// Puts back what [`KvCache::read`] has read.
    pub(crate) fn load(&mut self, loads: &[BlockLoad]) -> Result<(), TchError> {
        for load in loads {
            let parts = self.layers.iter().flat_map(|layer| [(layer, &layer.keys), (layer, &layer.values)]);
            let size = load.bytes.len() / (2 * self.layers.len()).max(1);
            for ((layer, cache), source) in parts.zip(load.bytes.chunks_exact(size.max(1))) {
                let mut row =
                    layer.by_block(cache)?.f_get(i64::from(load.block))?.f_view_dtype(Kind::Uint8)?;
                row.f_copy_(&Tensor::f_from_data_size(source, &[size as i64], Kind::Uint8)?)?;
            }
        }
        Ok(())
    }

    pub(crate) fn layers_mut(&mut self) -> &mut [LayerCache] {
        &mut self.layers
    }
}

impl LayerCache {
    /// Stores keys and values, `[tokens, kv_heads, head_dim]`, in `slots`, `[tokens]` of i64.
    pub(crate) fn write(&mut self, slots: &Tensor, keys: &Tensor, values: &Tensor) -> Result<(), TchError> {
        let _ = self.keys.f_index_copy_(0, slots, keys)?;
        let _ = self.values.f_index_copy_(0, slots, values)?;
        Ok(())
    }

    /// All keys, `[slots, kv_heads, head_dim]`.
    pub(crate) fn keys(&self) -> &Tensor {
        &self.keys
    }

    /// All values, as the keys.
    pub(crate) fn values(&self) -> &Tensor {
        &self.values
    }

    /// Keys and values of whole blocks, `[blocks * block_tokens, kv_heads, head_dim]` each, in the order of `blocks`, which
    /// is `[blocks]` of i64.
    pub(crate) fn gather(&self, blocks: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        Ok((self.gather_from(&self.keys, blocks)?, self.gather_from(&self.values, blocks)?))
    }

    fn gather_from(&self, cache: &Tensor, blocks: &Tensor) -> Result<Tensor, TchError> {
        let (_, kv_heads, head_dim) = cache.size3()?;
        self.by_block(cache)?.f_index_select(0, blocks)?.f_view([-1, kv_heads, head_dim])
    }

    /// The same memory as `[blocks, numbers of a block]`: a row is one contiguous copy.
    fn by_block(&self, cache: &Tensor) -> Result<Tensor, TchError> {
        let (_, kv_heads, head_dim) = cache.size3()?;
        cache.f_view([-1, self.block_tokens * kv_heads * head_dim])
    }
}
