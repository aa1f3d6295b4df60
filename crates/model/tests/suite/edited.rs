//! Models as edits leave them: cut out of larger ones, they give the same logits as the large one with everything that goes
//! switched off; blocks that stay are those of the large one.

use proptest::prelude::*;
use serde_json::{Value, json};
use tensorpress_model::{BlockShape, Source};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::rewrite::{self, Change, Edit, Role};
use tensorpress_tensor::{DType, Error, ErrorKind, RawTensor};

use crate::common::{Tiny, logits, logits_in_pieces, max_difference};

const HIDDEN: usize = 24;
const INNER: usize = 40;

/// What stays of a block, and what its output biases get for the rest.
#[derive(Clone, Default)]
struct BlockCut {
    heads: Vec<usize>,
    kv_heads: Vec<usize>,
    channels: Vec<usize>,
    attention_bias: Option<Vec<f32>>,
    mlp_bias: Option<Vec<f32>>,
}

/// Sorted numbers below `all`, `kept` of them.
fn choose(all: usize, kept: usize, random: &mut SplitMix) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..all).collect();
    while numbers.len() > kept {
        numbers.remove(random.next_u64() as usize % numbers.len());
    }
    numbers
}

/// A random cut of a block that leaves this shape.
fn cut(tiny: &Tiny, shape: [usize; 3], biases: [bool; 2], random: &mut SplitMix) -> BlockCut {
    let number = |key: &str| tiny.config[key].as_u64().unwrap() as usize;
    let (heads, all) = (number("num_attention_heads"), number("num_key_value_heads"));
    let [kv_heads, per_group, channels] = shape;
    let group = heads / all;
    let kv_heads = choose(all, kv_heads, random);
    let of = |kv: &usize| {
        choose(group, per_group, random).into_iter().map(|i| kv * group + i).collect::<Vec<_>>()
    };
    let heads = kv_heads.iter().flat_map(of).collect();
    let channels = choose(INNER, channels, random);
    let mut bias = |there: bool| {
        there.then(|| (0..HIDDEN).map(|_| random.next_f64() as f32 - 0.5).collect::<Vec<f32>>())
    };
    let (attention_bias, mlp_bias) = (bias(biases[0]), bias(biases[1]));
    BlockCut { heads, kv_heads, channels, attention_bias, mlp_bias }
}

/// The large model, whose removed heads and channels contribute nothing, and with the biases added.
fn masked(tiny: &Tiny, cuts: &[BlockCut]) -> Tiny {
    let mut tiny = tiny.clone();
    let dim = tiny.config["head_dim"].as_u64().unwrap() as usize;
    for (block, cut) in cuts.iter().enumerate() {
        let columns: Vec<usize> = cut.heads.iter().flat_map(|h| h * dim..(h + 1) * dim).collect();
        for (name, kept, bias) in [
            ("self_attn.o_proj", &columns, &cut.attention_bias),
            ("mlp.down_proj", &cut.channels, &cut.mlp_bias),
        ] {
            let name = format!("model.layers.{block}.{name}");
            let (shape, values) = tiny.tensors.get_mut(&format!("{name}.weight")).unwrap();
            let width = shape[1];
            let gone = |i: usize| !kept.contains(&(i % width));
            values.iter_mut().enumerate().filter(|(i, _)| gone(*i)).for_each(|(_, v)| *v = 0.0);
            if let Some(bias) = bias {
                let stored = tiny.tensors.entry(format!("{name}.bias"));
                let (_, values) = stored.or_insert((vec![HIDDEN], vec![0.0; HIDDEN]));
                values.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
            }
        }
    }
    tiny
}

/// A model of an architecture, with the biases and norms it has.
fn model(kind: &str, heads: usize, kv_heads: usize, dim: usize, biased: bool) -> Tiny {
    let mut tiny = Tiny::new(heads, kv_heads, dim);
    tiny.config["model_type"] = json!(kind);
    tiny.config["attention_bias"] = json!(biased);
    tiny.config["mlp_bias"] = json!(biased);
    let mut random = SplitMix::new(7);
    let mut vector = |name: String, len: usize| {
        let values = (0..len).map(|_| random.next_f64() as f32 + 0.5).collect();
        tiny.tensors.insert(name, (vec![len], values));
    };
    for block in 0..2 {
        let mut add = |name: &str, len| vector(format!("model.layers.{block}.{name}"), len);
        if kind == "qwen3" {
            add("self_attn.q_norm.weight", dim);
            add("self_attn.k_norm.weight", dim);
        }
        let (own, full) = (kind == "qwen2", biased && (kind == "llama" || kind == "qwen3"));
        if own || full {
            add("self_attn.q_proj.bias", heads * dim);
            add("self_attn.k_proj.bias", kv_heads * dim);
            add("self_attn.v_proj.bias", kv_heads * dim);
        }
        if full {
            add("self_attn.o_proj.bias", HIDDEN);
        }
        if biased && kind == "llama" {
            add("mlp.gate_proj.bias", INNER);
            add("mlp.up_proj.bias", INNER);
            add("mlp.down_proj.bias", HIDDEN);
        }
    }
    tiny
}

fn models() -> impl Strategy<Value = Tiny> {
    let heads = prop_oneof![
        Just((1, 1)),
        Just((4, 4)),
        Just((4, 2)),
        Just((6, 2)),
        Just((5, 1)),
        Just((8, 4))
    ];
    let kind = prop_oneof![Just("llama"), Just("mistral"), Just("qwen2"), Just("qwen3")];
    (heads, 1usize..4, kind, any::<bool>())
        .prop_map(|((heads, kv), half, kind, biased)| model(kind, heads, kv, 2 * half, biased))
}

fn narrowed(tiny: &Tiny, cuts: &[BlockCut], plain: bool) -> Result<Source, Error> {
    let (_folder, source) = tiny.source();
    narrow(&source.unwrap(), cuts, plain)
}

fn narrow(source: &Source, cuts: &[BlockCut], plain: bool) -> Result<Source, Error> {
    let model = source.layout(plain);
    let mut edits = Vec::new();
    for (layout, cut) in model.blocks.iter().zip(cuts) {
        let kept = [&cut.heads, &cut.kv_heads, &cut.channels].map(Clone::clone);
        let [heads, kv_heads, channels] = kept;
        let kept = rewrite::BlockCut::new(heads, kv_heads, channels);
        let mut edit = Edit::cut(&model, layout, &kept)?;
        for (role, bias) in [(Role::O, &cut.attention_bias), (Role::Down, &cut.mlp_bias)] {
            if let Some(bias) = bias {
                let name = &layout.linear(role).unwrap().bias;
                edit = edit.with_change(name, Change::Added(bias.clone()));
            }
        }
        edits.push(edit);
    }
    source.edited(&edits, plain)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn narrow_models_compute_what_masked_ones_do(
        tiny in models(),
        plain in any::<bool>(),
        kept in proptest::collection::vec((0usize..8, 0usize..8, 1usize..=INNER), 2),
        seed in any::<u64>(),
        ids in proptest::collection::vec(0u32..61, 1..60),
        pieces in proptest::collection::vec(1usize..20, 60),
    ) {
        let mut random = SplitMix::new(seed);
        let number = |key: &str| tiny.config[key].as_u64().unwrap() as usize;
        let (kv, group) =
            (number("num_key_value_heads"), number("num_attention_heads") / number("num_key_value_heads"));
        let kind = tiny.config["model_type"].as_str().unwrap().to_owned();
        // A plain config knows biases of some architectures only, and one shape.
        let biases = match plain {
            true => [kind == "llama" || kind == "qwen3", kind == "llama"],
            false => [seed % 2 == 0, seed % 3 == 0],
        };
        let cuts: Vec<BlockCut> = (0..2)
            .map(|block| {
                let (a, b, c) = kept[if plain { 0 } else { block }];
                cut(&tiny, [1 + a % kv, 1 + b % group, c], biases, &mut random)
            })
            .collect();
        let exact = masked(&tiny, &cuts).decoder();
        let source = narrowed(&tiny, &cuts, plain).unwrap();
        let config = source.config();
        for (block, cut) in cuts.iter().enumerate() {
            let BlockShape { heads, kv_heads, intermediate, .. } = config.shape(block);
            prop_assert_eq!((heads, kv_heads), (cut.heads.len(), cut.kv_heads.len()));
            prop_assert_eq!(intermediate, cut.channels.len());
            let block = source.block(block).unwrap();
            let stored: usize = block.linears().map(|l| l.shape()[0] * l.shape()[1]).sum();
            let dim = config.head_dim;
            prop_assert_eq!(stored, HIDDEN * (2 * dim * (heads + kv_heads) + 3 * intermediate));
        }
        prop_assert_eq!(plain, config.shapes.is_none());
        prop_assert_eq!(plain, source.raw_config().get("quantization_config").is_none());
        let small = source.decoder().unwrap();
        let want = logits(&exact, &ids).unwrap();
        prop_assert!(max_difference(&want, &logits(&small, &ids).unwrap()) < 1e-4);
        // The cache has the heads of each block.
        let cached = logits_in_pieces(&small, &ids, &pieces).unwrap();
        prop_assert!(max_difference(&want, &cached) < 1e-4);
        // A cut of what was cut: nothing more goes.
        let all = |block| {
            let BlockShape { heads, kv_heads, intermediate, .. } = config.shape(block);
            let [heads, kv_heads, channels] = [heads, kv_heads, intermediate].map(|n| (0..n).collect());
            BlockCut { heads, kv_heads, channels, ..BlockCut::default() }
        };
        let again = narrow(&source, &[all(0), all(1)], plain).unwrap().decoder().unwrap();
        prop_assert_eq!(logits(&small, &ids).unwrap(), logits(&again, &ids).unwrap());
    }
}

#[test]
fn impossible_cuts_are_refused() {
    let tiny = model("qwen2", 6, 2, 4, false);
    let mut random = SplitMix::new(3);
    let good = || {
        let mut random = SplitMix::new(3);
        [0, 1].map(|_| cut(&tiny, [2, 2, 30], [false; 2], &mut random)).to_vec()
    };
    assert!(narrowed(&tiny, &good(), true).is_ok());
    type Change = fn(&mut Vec<BlockCut>);
    let cases: [(&str, Change, ErrorKind); 9] = [
        ("edits of 1 blocks for 2", |c| drop(c.pop()), ErrorKind::InvalidArgument),
        ("heads that stay", |c| c[0].heads.clear(), ErrorKind::InvalidArgument),
        ("key and value heads", |c| c[1].kv_heads.clear(), ErrorKind::InvalidArgument),
        ("channels that stay", |c| c[1].channels.clear(), ErrorKind::InvalidArgument),
        ("below 40", |c| c[1].channels.push(40), ErrorKind::InvalidArgument),
        ("ascending", |c| c[1].channels.reverse(), ErrorKind::InvalidArgument),
        ("each group", |c| c[0].heads.truncate(1), ErrorKind::InvalidArgument),
        ("each group", |c| c[0].kv_heads.truncate(1), ErrorKind::InvalidArgument),
        ("no key", |c| c[0].attention_bias = Some(vec![0.0; 24]), ErrorKind::Unsupported),
    ];
    for (part, change, kind) in cases {
        let mut cuts = good();
        change(&mut cuts);
        let error = narrowed(&tiny, &cuts, true).unwrap_err();
        assert_eq!(error.kind(), kind, "{part}: {error}");
        assert!(error.message().contains(part), "{part}: {error}");
    }
    let uneven = [[2, 2, 30], [2, 2, 29]].map(|shape| cut(&tiny, shape, [true; 2], &mut random));
    assert_eq!(narrowed(&tiny, &uneven, true).unwrap_err().kind(), ErrorKind::Unsupported);
    let source = narrowed(&tiny, &uneven, false).unwrap();
    assert!(source.decoder().is_ok());
}

/// A model of four blocks, each unlike the others.
fn deep(kind: &str) -> Tiny {
    let mut tiny = model(kind, 4, 2, 6, false);
    let blocks: Vec<_> = tiny.tensors.iter().map(|(n, t)| (n.clone(), t.clone())).collect();
    for (name, (shape, values)) in blocks {
        for block in 0..2 {
            let Some(rest) = name.strip_prefix(&format!("model.layers.{block}.")) else { continue };
            let values = values.iter().map(|v| 0.9 * v).collect();
            tiny.tensors
                .insert(format!("model.layers.{}.{rest}", block + 2), (shape.clone(), values));
        }
    }
    tiny.config["num_hidden_layers"] = json!(4);
    tiny
}

/// The same model with these of its blocks, made by hand.
fn without(tiny: &Tiny, left: &[usize]) -> Tiny {
    let mut small = tiny.clone();
    small.tensors.retain(|name, _| !name.contains(".layers."));
    for (new, old) in left.iter().enumerate() {
        for (name, tensor) in &tiny.tensors {
            if let Some(rest) = name.strip_prefix(&format!("model.layers.{old}.")) {
                small.tensors.insert(format!("model.layers.{new}.{rest}"), tensor.clone());
            }
        }
    }
    small.config["num_hidden_layers"] = json!(left.len());
    small
}

#[test]
fn blocks_that_stay_are_numbered_anew() {
    let ids: Vec<u32> = (0..50).map(|i| (i * 7) % 61).collect();
    for kind in ["llama", "mistral", "qwen2", "qwen3"] {
        let mut tiny = deep(kind);
        let listed = kind == "qwen3";
        let windows = kind.starts_with("qwen");
        if windows {
            tiny.config["sliding_window"] = json!(5);
            tiny.config["use_sliding_window"] = json!(true);
            tiny.config["max_window_layers"] = json!(2);
        }
        if listed {
            let [full, sliding] = ["full_attention", "sliding_attention"];
            tiny.config["layer_types"] = json!([full, sliding, full, sliding]);
        }
        for left in [vec![0, 1, 3], vec![1, 2], vec![3], vec![0, 1, 2, 3]] {
            let mut small = without(&tiny, &left);
            if listed {
                let all = tiny.config["layer_types"].as_array().unwrap();
                let types: Vec<Value> = left.iter().map(|b| all[*b].clone()).collect();
                small.config["layer_types"] = json!(types);
            }
            if windows {
                small.config["max_window_layers"] = json!(left.iter().filter(|b| **b < 2).count());
            }
            let stays = |block| if left.contains(&block) { Edit::new() } else { Edit::dropped() };
            let edits: Vec<Edit> = (0..4).map(stays).collect();
            let (_folder, source) = tiny.source();
            let source = source.unwrap();
            for plain in [true, false] {
                let edited = source.edited(&edits, plain).unwrap();
                let names: Vec<&str> = edited.checkpoint().names().collect();
                let wanted: Vec<&str> = small.tensors.keys().map(String::as_str).collect();
                assert_eq!(names, wanted);
                assert_eq!(edited.config().windows, small.source().1.unwrap().config().windows);
                let whole = left.len() == 4;
                assert!(whole || edited.raw_config()["layer_types"] == small.config["layer_types"]);
                assert!(edited.raw_config().get("quantization_config").is_none());
                let got = edited.decoder().unwrap().materialise().unwrap();
                let [want, got] = [&small.decoder(), &got].map(|m| logits(m, &ids).unwrap());
                assert_eq!(want, got, "{kind} {left:?}");
                // Numbers of what was numbered anew.
                if left.len() == 3 {
                    let edits = [Edit::new(), Edit::dropped(), Edit::new()];
                    let again = edited.edited(&edits, plain).unwrap();
                    let by_hand = without(&small, &[0, 2]);
                    let kept: Vec<&str> = by_hand.tensors.keys().map(String::as_str).collect();
                    assert!(again.checkpoint().names().eq(kept));
                    assert_eq!(
                        again.checkpoint().tensor(names[0]).unwrap().bytes()[..],
                        edited.checkpoint().tensor(names[0]).unwrap().bytes()[..]
                    );
                }
            }
        }
    }
}

#[test]
fn tensors_are_made_added_to_and_dropped() {
    let tiny = model("llama", 4, 2, 6, false);
    let (_folder, source) = tiny.source();
    let source = source.unwrap();
    let name = |block: usize, part: &str| format!("model.layers.{block}.{part}");
    let other = source.checkpoint().tensor(&name(1, "mlp.up_proj.weight")).unwrap();
    let edit = Edit::new()
        .with_change(&name(0, "mlp.up_proj.weight"), Change::New(other))
        .with_change(&name(0, "input_layernorm.weight"), Change::Added(vec![1.0; HIDDEN]))
        .with_change(&name(0, "self_attn.o_proj.bias"), Change::Added(vec![2.0; HIDDEN]));
    let edited = source.edited(&[edit, Edit::new()], false).unwrap();
    let mut want = tiny.clone();
    let up = want.tensors[&name(1, "mlp.up_proj.weight")].clone();
    want.tensors.insert(name(0, "mlp.up_proj.weight"), up);
    let norm = want.tensors.get_mut(&name(0, "input_layernorm.weight")).unwrap();
    norm.1.iter_mut().for_each(|v| *v += 1.0);
    want.tensors.insert(name(0, "self_attn.o_proj.bias"), (vec![HIDDEN], vec![2.0; HIDDEN]));
    let got = edited.decoder().unwrap().materialise().unwrap();
    let ids: Vec<u32> = (0..30).collect();
    assert_eq!(logits(&want.decoder(), &ids).unwrap(), logits(&got, &ids).unwrap());

    let one = |edit: Edit| source.edited(&[edit, Edit::new()], false);
    let gone = one(Edit::new().with_change(&name(0, "mlp.up_proj.weight"), Change::Gone)).unwrap();
    assert_eq!(gone.decoder().unwrap_err().kind(), ErrorKind::InsufficientData);
    // A cut of a bias that the model does without.
    let bias = Change::Columns(vec![0, 1]);
    assert!(one(Edit::new().with_change(&name(0, "self_attn.q_proj.bias"), bias)).is_ok());
    let tensor = |shape: Vec<usize>| {
        let bytes = vec![0_u8; 4 * shape.iter().product::<usize>()];
        RawTensor::new(DType::F32, shape, bytes.into()).unwrap()
    };
    let up = name(0, "mlp.up_proj.weight");
    let change = |name: &str, change| Edit::new().with_change(name, change);
    for (edit, kind, part) in [
        (
            change(&name(1, "mlp.up_proj.weight"), Change::Gone),
            ErrorKind::InvalidArgument,
            "no tensor of block 0",
        ),
        (
            change("lm_head.weight", Change::Gone),
            ErrorKind::InvalidArgument,
            "no tensor of block 0",
        ),
        (
            change(&up, Change::Rows(vec![3, 3])),
            ErrorKind::InvalidArgument,
            "ascending numbers below 40",
        ),
        (change(&up, Change::Columns(vec![])), ErrorKind::InvalidArgument, "at least one"),
        (change(&up, Change::Rows(vec![3])), ErrorKind::ShapeMismatch, "implies [40, 24]"),
        (
            change(&up, Change::New(tensor(vec![40, 23]))),
            ErrorKind::ShapeMismatch,
            "implies [40, 24]",
        ),
        (
            change(&name(0, "self_attn.o_proj.bias"), Change::Added(vec![1.0; 3])),
            ErrorKind::ShapeMismatch,
            "3 values added to 24",
        ),
        (
            change(&name(0, "nothing"), Change::Added(vec![1.0])),
            ErrorKind::InsufficientData,
            "no such tensor",
        ),
        (
            Edit::new().with_shape(BlockShape::new(3, 2, 40)),
            ErrorKind::InvalidArgument,
            "3 heads, 2 for keys",
        ),
        (
            Edit::new().with_shape(BlockShape::new(4, 2, 39)),
            ErrorKind::ShapeMismatch,
            "implies [39, 24]",
        ),
    ] {
        let error = one(edit).unwrap_err();
        assert_eq!(error.kind(), kind, "{part}: {error}");
        assert!(error.message().contains(part), "{part}: {error}");
    }
    let error = source.edited(&[Edit::dropped(), Edit::dropped()], true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
}

#[test]
fn shapes_in_a_config_are_checked() {
    let shape = |heads: i64, kv: i64, inner: i64| json!({"num_attention_heads": heads, "num_key_value_heads": kv, "intermediate_size": inner});
    let fine = shape(4, 2, 40);
    let open = |blocks: Value| {
        let mut tiny = Tiny::new(4, 2, 6);
        tiny.config["quantization_config"] =
            json!({"quant_method": "tensorpress", "blocks": blocks});
        let (_folder, source) = tiny.source();
        source.and_then(|source| source.decoder()).map(drop)
    };
    open(json!([fine, fine])).unwrap();
    for (blocks, kind, part) in [
        (json!([fine]), ErrorKind::Corruption, "1 `quantization_config.blocks` for 2"),
        (json!("all"), ErrorKind::Corruption, "`quantization_config.blocks` is no list"),
        (json!([fine, 3]), ErrorKind::Corruption, "no list of objects"),
        (
            json!([fine, {}]),
            ErrorKind::InsufficientData,
            "quantization_config.blocks[1].num_attention_heads",
        ),
        (
            json!([fine, shape(3, 2, 40)]),
            ErrorKind::Corruption,
            "blocks[1].num_attention_heads` = 3",
        ),
        (json!([shape(4, 0, 40), fine]), ErrorKind::Corruption, "blocks[0].num_key_value_heads"),
        (json!([fine, shape(4, 2, -1)]), ErrorKind::Corruption, "blocks[1].intermediate_size"),
        (json!([fine, shape(1 << 28, 2, 40)]), ErrorKind::Corruption, "head_dim"),
        (json!([fine, shape(4, 2, 39)]), ErrorKind::ShapeMismatch, "config.json implies"),
        (json!([fine, shape(4, 4, 40)]), ErrorKind::ShapeMismatch, "config.json implies"),
    ] {
        let error = open(blocks.clone()).unwrap_err();
        assert_eq!(error.kind(), kind, "{blocks}: {error}");
        assert!(error.message().contains(part), "{blocks}: {error}");
    }
}
