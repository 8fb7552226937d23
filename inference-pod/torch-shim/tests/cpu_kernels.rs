//! The CPU kernels against libtorch's own operators, on random shapes and numbers.

#![allow(clippy::unwrap_used)] // a panic is a test's verdict

use fairlead_torch_shim::cpu::{
    HeadNorms, PagedQueries, Rotation, Visible, linear, paged_attention, rms_norm, rotate_and_store,
    silu_gate, supported,
};
use tch::{Device, Kind, Tensor};

const KINDS: [(Kind, f64); 2] = [(Kind::Float, 2e-5), (Kind::BFloat16, 0.02)];

fn random(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind)
}

/// A small deterministic stream of numbers, for shapes.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % end.max(1)
    }
}

/// `wanted` is in f32, computed from the same numbers.
fn assert_close(got: &Tensor, wanted: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(got.size(), wanted.size(), "{what}");
    let difference = (got.to_kind(Kind::Float) - wanted).abs() / (wanted.abs() + 1.0);
    let largest = f64::try_from(difference.max()).unwrap();
    assert!(largest <= tolerance, "{what}: {largest} is more than {tolerance}");
}

#[test]
fn products_agree() {
    assert!(supported(), "this machine cannot test the kernels");
    let shapes = [
        (1, 8, 1),
        (1, 67, 5),
        (2, 64, 33),
        (3, 40, 130),
        (4, 96, 7),
        (5, 24, 64),
        (16, 129, 90),
        (70, 64, 301),
    ];
    for (kind, tolerance) in KINDS {
        for (rows, width, out) in shapes {
            for with_bias in [false, true] {
                let x = random(&[rows, width], kind);
                let w = (random(&[out, width], Kind::Float) / (width as f64).sqrt()).to_kind(kind);
                let b = with_bias.then(|| random(&[out], kind));
                let as_f32 = b.as_ref().map(|bias| bias.to_kind(Kind::Float));
                let wanted = x.to_kind(Kind::Float).linear(&w.to_kind(Kind::Float), as_f32.as_ref());
                let got = linear(&x, &w, b.as_ref()).unwrap();
                assert_eq!(got.kind(), kind);
                assert_close(&got, &wanted, tolerance, &format!("{kind:?} {rows} x {width} x {out}"));
            }
        }
    }
}

#[test]
fn rows_of_a_larger_tensor_are_read_where_they_lie() {
    let all = random(&[5, 48], Kind::Float);
    let (x, w) = (all.narrow(1, 8, 32), random(&[9, 64], Kind::Float).narrow(1, 0, 32));
    assert_close(&linear(&x, &w, None).unwrap(), &x.linear::<Tensor>(&w, None), 2e-5, "views");
    assert!(linear(&x.tr(), &w, None).is_err());
    assert!(linear(&x, &w.to_kind(Kind::BFloat16), None).is_err());
    assert!(linear(&x, &w.narrow(1, 0, 24), None).is_err());
    assert!(linear(&x.to_kind(Kind::Double), &w.to_kind(Kind::Double), None).is_err());
}

#[test]
fn norms_and_gates_agree() {
    for (kind, tolerance) in KINDS {
        for (rows, width) in [(1, 8), (3, 37), (40, 768)] {
            let x = random(&[rows, width * 2], kind);
            let wide = x.to_kind(Kind::Float);
            let weight = random(&[width * 2], kind);
            let wanted = wide.rms_norm([width * 2], Some(&weight.to_kind(Kind::Float)), 1e-5);
            assert_close(&rms_norm(&x, &weight, 1e-5).unwrap(), &wanted, tolerance, "norm");
            let wanted = wide.narrow(1, 0, width).silu() * wide.narrow(1, width, width);
            assert_close(&silu_gate(&x).unwrap(), &wanted, tolerance, "gate");
        }
    }
}

#[test]
fn rotation_agrees_and_reaches_the_cache() {
    for (kind, tolerance) in KINDS {
        for with_norms in [false, true] {
            let (tokens, heads, kv_heads, head_dim) = (7, 6, 2, 20);
            let qkv = random(&[tokens, heads + 2 * kv_heads, head_dim], kind);
            let angles = random(&[tokens, 1, head_dim / 2], Kind::Float);
            let (cosine, sine) = (angles.cos().to_kind(kind), angles.sin().to_kind(kind));
            let cosine = Tensor::cat(&[&cosine, &cosine], -1);
            let slots = Tensor::from_slice(&[3_i64, 4, 5, 19, 0, 1, 11]);
            let cache = || Tensor::zeros([20, kv_heads, head_dim], (kind, Device::Cpu));
            let (keys, values) = (cache(), cache());
            let norm = [random(&[head_dim], kind), random(&[head_dim], kind)];

            let wide = qkv.to_kind(Kind::Float).copy();
            let part = |first, count| wide.narrow(1, first, count);
            let normed = |x: Tensor, weight: &Tensor| match with_norms {
                true => x.rms_norm([head_dim], Some(&weight.to_kind(Kind::Float)), 1e-6),
                false => x,
            };
            let turned =
                Tensor::cat(&[normed(part(0, heads), &norm[0]), normed(part(heads, kv_heads), &norm[1])], 1);
            let half = head_dim / 2;
            let swapped = Tensor::cat(&[-turned.narrow(2, half, half), turned.narrow(2, 0, half)], 2);
            let sines = Tensor::cat(&[&sine, &sine], -1).to_kind(Kind::Float);
            let wanted = turned * cosine.to_kind(Kind::Float) + swapped * sines;

            rotate_and_store(&Rotation {
                qkv: &qkv,
                norms: with_norms.then_some(HeadNorms { queries: &norm[0], keys: &norm[1], epsilon: 1e-6 }),
                cosine: &cosine,
                sine: &sine,
                slots: &slots,
                keys: &keys,
                values: &values,
            })
            .unwrap();
            assert_close(&qkv.narrow(1, 0, heads + kv_heads), &wanted, 2.0 * tolerance, "rotation");
            let stored = keys.index_select(0, &slots);
            assert_close(&stored, &wanted.narrow(1, heads, kv_heads), 2.0 * tolerance, "keys");
            assert_close(&values.index_select(0, &slots), &part(heads + kv_heads, kv_heads), 0.0, "values");
            assert_eq!(f64::try_from(keys.get(2).abs().sum(Kind::Double)).unwrap(), 0.0);
        }
    }
}

#[test]
fn a_slot_outside_the_cache_is_refused() {
    let cache = Tensor::zeros([4, 1, 8], (Kind::Float, Device::Cpu));
    for slot in [-1_i64, 4] {
        let answer = rotate_and_store(&Rotation {
            qkv: &random(&[1, 3, 8], Kind::Float),
            norms: None,
            cosine: &random(&[1, 1, 8], Kind::Float),
            sine: &random(&[1, 1, 4], Kind::Float),
            slots: &Tensor::from_slice(&[slot]),
            keys: &cache,
            values: &cache.copy(),
        });
        assert!(answer.is_err(), "{slot}");
    }
}

#[test]
fn attention_agrees_over_random_tables_lengths_windows_and_heads() {
    let mut dice = Dice(7);
    for round in 0..60 {
        let (kind, tolerance) = KINDS[round % 2];
        let block_tokens = [16, 32, 64][dice.below(3)];
        let (kv_heads, groups) = (1 + dice.below(3), 1 + dice.below(8));
        let (heads, head_dim) = (kv_heads * groups, [8, 20, 32, 64, 80, 128][dice.below(6)]);
        let blocks = 40;
        let cache = |_| random(&[(blocks * block_tokens) as i64, kv_heads as i64, head_dim as i64], kind);
        let [keys, values] = [0, 1].map(cache);
        let tokens = 1 + dice.below(5);
        let mut plan = PagedQueries { tokens: Vec::new(), blocks: Vec::new(), block_tokens };
        for _ in 0..tokens {
            let length = 1 + dice.below(6 * block_tokens);
            let begin = if dice.below(3) == 0 { dice.below(length) } else { 0 };
            let first = plan.blocks.len();
            plan.blocks.extend((0..length.div_ceil(block_tokens)).map(|_| dice.below(blocks) as u32));
            plan.tokens.push(Visible { positions: begin..length, table: first..plan.blocks.len() });
        }
        let queries = random(&[tokens as i64, heads as i64, head_dim as i64], kind);
        let got = paged_attention(&plan, &queries, &keys, &values).unwrap();
        for (row, token) in plan.tokens.iter().enumerate() {
            let slots: Vec<i64> = token
                .positions
                .clone()
                .map(|position| {
                    let block = plan.blocks[token.table.clone()][position / block_tokens] as usize;
                    (block * block_tokens + position % block_tokens) as i64
                })
                .collect();
            let gathered = |cache: &Tensor| {
                let rows = cache.index_select(0, &Tensor::from_slice(&slots)).to_kind(Kind::Float);
                rows.transpose(0, 1).repeat_interleave_self_int(groups as i64, 0, None)
            };
            let query = queries.get(row as i64).to_kind(Kind::Float).unsqueeze(1);
            let scores = query.matmul(&gathered(&keys).transpose(1, 2)) / (head_dim as f64).sqrt();
            let wanted = scores.softmax(-1, Kind::Float).matmul(&gathered(&values)).reshape([-1]);
            assert_close(&got.get(row as i64), &wanted, tolerance, &format!("round {round}, token {row}"));
        }
    }
}

#[test]
fn attention_outside_the_cache_is_refused() {
    let cache = random(&[64, 2, 16], Kind::Float);
    let queries = random(&[1, 4, 16], Kind::Float);
    let plan = |positions, table, blocks: &[u32]| PagedQueries {
        tokens: vec![Visible { positions, table }],
        blocks: blocks.to_vec(),
        block_tokens: 16,
    };
    assert!(paged_attention(&plan(0..20, 0..2, &[3, 0]), &queries, &cache, &cache).is_ok());
    let broken = [
        plan(0..20, 0..2, &[4, 0]),
        plan(0..20, 0..1, &[1, 2]),
        plan(0..20, 0..3, &[1, 2]),
        plan(5..5, 0..1, &[1]),
    ];
    for plan in broken {
        assert!(paged_attention(&plan, &queries, &cache, &cache).is_err(), "{plan:?}");
    }
}

#[test]
fn what_is_not_a_number_stays_so() {
    let broken = Tensor::from_slice(&[f32::NAN, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]).view([1, 8]);
    for kind in [Kind::Float, Kind::BFloat16] {
        let x = broken.to_kind(kind);
        let ones = Tensor::ones([8], (kind, Device::Cpu));
        let all_nan = |tensor: Tensor| bool::try_from(tensor.isnan().all()).unwrap();
        assert!(all_nan(rms_norm(&x, &ones, 1e-5).unwrap()));
        assert!(all_nan(linear(&x, &ones.view([1, 8]), None).unwrap()));
        let plan = PagedQueries {
            tokens: vec![Visible { positions: 0..3, table: 0..1 }],
            blocks: vec![0],
            block_tokens: 16,
        };
        let cache = Tensor::ones([16, 1, 8], (kind, Device::Cpu));
        assert!(all_nan(paged_attention(&plan, &x.view([1, 1, 8]), &cache, &cache).unwrap()));
    }
}
