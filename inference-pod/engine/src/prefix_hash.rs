//! Names of KV blocks: a chain of hashes over all that a block's keys and values depend on within one model.
//!
//! The chain begins at a root made of the adapter's digest and the cache salt; each full block's name is a hash of its
//! parent's name and its own tokens. Equal names therefore mean equal tokens from the first to the block's last, the same
//! adapter and the same salt. 256 bits of BLAKE3: nobody finds two prompts with the same name, by chance or on purpose, so
//! hits need no comparison of tokens. What names the model is not in it; a tier that outlives the process adds that.

/// Names a full block: its tokens, all tokens before them, the adapter and the salt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockHash(pub [u8; 32]);

/// Keeps these hashes apart from any other use of BLAKE3.
const CONTEXT: &str = "fairlead kv block name 1";

impl BlockHash {
    /// What the first block's parent is: no tokens yet, with this adapter's digest and this salt.
    #[must_use]
    pub fn root(adapter: Option<&[u8; 32]>, salt: Option<&str>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        match adapter {
            None => hasher.update(&[0]),
            Some(digest) => hasher.update(&[1]).update(digest),
        };
        // The salt is last, so its length need not be told; an empty one is not the same as none.
        match salt {
            None => hasher.update(&[0]),
            Some(salt) => hasher.update(&[1]).update(salt.as_bytes()),
        };
        Self(*hasher.finalize().as_bytes())
    }

    /// The name of a full block of `tokens` that follows this one.
    #[must_use]
    pub fn next(&self, tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        let mut bytes = [0_u8; 256];
        for piece in tokens.chunks(bytes.len() / 4) {
            for (slot, token) in bytes.chunks_exact_mut(4).zip(piece) {
                slot.copy_from_slice(&token.to_le_bytes());
            }
            hasher.update(&bytes[..piece.len() * 4]);
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// Appends the names of the full blocks of `tokens` that `names` has not got yet; `self` is the root.
    pub fn extend_chain(self, names: &mut Vec<Self>, tokens: &[u32], block_tokens: usize) {
        let mut parent = names.last().copied().unwrap_or(self);
        for block in tokens.chunks_exact(block_tokens.max(1)).skip(names.len()) {
            parent = parent.next(block);
            names.push(parent);
        }
    }
}

impl std::fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", blake3::Hash::from_bytes(self.0).to_hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(root: BlockHash, tokens: &[u32]) -> Vec<BlockHash> {
        let mut names = Vec::new();
        root.extend_chain(&mut names, tokens, 4);
        names
    }

    #[test]
    fn only_full_blocks_have_a_name_and_it_covers_everything_before_them() {
        let root = BlockHash::root(None, None);
        let tokens: Vec<u32> = (0..11).collect();
        let names = chain(root, &tokens);
        assert_eq!(names.len(), 2);
        assert_eq!(names[0], root.next(&[0, 1, 2, 3]));
        assert_eq!(names[1], names[0].next(&[4, 5, 6, 7]));
        let mut other = tokens.clone();
        other[0] = 99;
        assert!(chain(root, &other).iter().zip(&names).all(|(a, b)| a != b));
        other = tokens.clone();
        other[7] = 99;
        assert_eq!(chain(root, &other)[0], names[0]);
        assert_ne!(chain(root, &other)[1], names[1]);
    }

    #[test]
    fn a_chain_grows_as_it_would_have_been_made_at_once() {
        let root = BlockHash::root(None, Some("a"));
        let tokens: Vec<u32> = (0..40).collect();
        let mut names = Vec::new();
        for length in 0..=tokens.len() {
            root.extend_chain(&mut names, &tokens[..length], 4);
        }
        assert_eq!(names, chain(root, &tokens));
    }

    #[test]
    fn adapters_and_salts_share_nothing() {
        let (a, b) = ([1; 32], [2; 32]);
        let roots = [
            BlockHash::root(None, None),
            BlockHash::root(None, Some("")),
            BlockHash::root(None, Some("a")),
            BlockHash::root(Some(&a), None),
            BlockHash::root(Some(&b), None),
            BlockHash::root(Some(&a), Some("a")),
            BlockHash::root(None, Some(std::str::from_utf8(&a).unwrap())),
        ];
        for (index, left) in roots.iter().enumerate() {
            assert!(roots[index + 1..].iter().all(|right| left != right), "root {index}");
        }
    }

    #[test]
    fn long_blocks_are_hashed_whole() {
        let root = BlockHash::root(None, None);
        let tokens: Vec<u32> = (0..256).collect();
        for position in [0, 63, 64, 255] {
            let mut other = tokens.clone();
            other[position] += 1000;
            assert_ne!(root.next(&tokens), root.next(&other), "token {position}");
        }
    }
}
