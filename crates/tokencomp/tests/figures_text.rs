//! What the methods keep of the keys and values of real models, beside as many tokens by lot and by ToMe: the numbers of
//! the pages. `cargo test -p tensorpress-tokencomp --test figures_text -- --nocapture` prints them.

mod common;

use tensorpress_tensor::ndarray::{Array2, Array3, ArrayView2, Axis, concatenate, s};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, Tensor};
use tensorpress_tokencomp::layers::{Align, LinearMap, informativeness, pooled_attention};
use tensorpress_tokencomp::measure::gaussian;
use tensorpress_tokencomp::{
    AttentionTopK, ConceptChunk, Crops, DiffRate, DivPrune, EfficientVla, MigMerge, Pooling,
    QueryPooling, RandomKeep, SubmodularSelect, ToMe, TokenCorr, TokenHints, TokenMap, TokenReduce,
    fewest_tokens,
};

/// Queries `[heads][tokens, dim]`, keys and values of a layer of all-MiniLM-L6-v2 on 300 tokens.
struct Layer {
    q: Vec<Array2<f32>>,
    k: Vec<Array2<f32>>,
    v: Vec<Array2<f32>>,
}

fn layer(file: &str, names: [&str; 3]) -> Option<Layer> {
    let path = data::find(&format!("golden/kv/{file}.safetensors"))?;
    let file = Checkpoint::open(path).expect("a golden file");
    let heads = |name: &str| -> Vec<Array2<f32>> {
        let tensor = file.tensor(name).expect("a tensor");
        let [heads, tokens, dim] = tensor.shape()[..] else { panic!("{name}") };
        let all = tensor.to_matrix().expect("floats");
        let all = all.to_shape((heads, tokens, dim)).expect("heads").to_owned();
        all.outer_iter().map(|head| head.to_owned()).collect()
    };
    Some(Layer { q: heads(names[0]), k: heads(names[1]), v: heads(names[2]) })
}

/// Heads side by side.
fn flat(heads: &[Array2<f32>]) -> Array2<f32> {
    let views: Vec<ArrayView2<'_, f32>> = heads.iter().map(|x| x.view()).collect();
    concatenate(Axis(1), &views).expect("as many tokens")
}

impl Layer {
    /// Probabilities of a head, where keys weigh as `bias` says.
    fn attend(&self, head: usize, k: ArrayView2<'_, f32>, bias: &[f32]) -> Array2<f32> {
        let mut p = self.q[head].dot(&k.t()) / (k.ncols() as f32).sqrt();
        for mut row in p.rows_mut() {
            row.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.mapv_inplace(|s| (s - most).exp());
            let sum = row.sum();
            row.mapv_inplace(|s| s / sum);
        }
        p
    }

    /// The mean over heads of the attention that each token receives from some queries.
    fn received(&self, from: std::ops::Range<usize>) -> Vec<f32> {
        let mut sum = vec![0.0; self.k[0].nrows()];
        for head in 0..self.q.len() {
            let of = head * self.k.len() / self.q.len();
            let p = self.attend(head, self.k[of].view(), &vec![0.0; sum.len()]);
            let mean = p.slice(s![from.clone(), ..]).mean_axis(Axis(0)).expect("queries");
            sum.iter_mut().zip(&mean).for_each(|(s, m)| *s += m / self.q.len() as f32);
        }
        sum
    }

    /// How far off what attention gives is with keys and values reduced: squares over those of all tokens, for all queries
    /// and for the last 16.
    fn error(&self, map: &TokenMap, weights: Option<&[f32]>) -> [f64; 2] {
        let tokens = map.sources();
        let (bias, mut off, mut all) = (map.log_sizes(None).unwrap(), [0.0; 2], [0.0; 2]);
        for head in 0..self.q.len() {
            let of = head * self.k.len() / self.q.len();
            let (k, v) = (&self.k[of], &self.v[of]);
            let whole = self.attend(head, k.view(), &vec![0.0; tokens]).dot(v);
            let few = map.merge(k.view(), weights).unwrap();
            let few =
                self.attend(head, few.view(), &bias).dot(&map.merge(v.view(), weights).unwrap());
            for (i, from) in [0, tokens - 16].into_iter().enumerate() {
                let part =
                    |x: &Array2<f32>| x.slice(s![from.., ..]).mapv(|v| f64::from(v).powi(2)).sum();
                off[i] += part(&(&few - &whole));
                all[i] += part(&whole);
            }
        }
        [off[0] / all[0], off[1] / all[1]]
    }
}

#[test]
fn keys_and_values_of_a_text() {
    let names = ["in.q_rope", "in.k_rope", "in.v"];
    let Some(layer) = layer("kvpress_gqa12x4_minilm_l2", names) else { return };
    let x = flat(&layer.k);
    let tokens = x.nrows();
    let (attention, class) = (layer.received(0..tokens), layer.received(0..1));
    let asked = layer.received(tokens - 16..tokens);
    // A relevance on the scale of cosines.
    let most = asked.iter().copied().fold(0.0, f32::max);
    let asked: Vec<f32> = asked.iter().map(|a| a / most).collect();
    let crops: Vec<usize> = (0..tokens).map(|t| t / 75).collect();
    let hints = TokenHints::default()
        .with_attention(&attention)
        .with_class_attention(&attention)
        .with_relevance(&asked)
        .with_crops(Crops::new(&crops));
    let plain = hints.with_class_attention(&class);
    let methods: [(&str, &dyn TokenReduce, &TokenHints<'_>); 19] = [
        ("random", &RandomKeep::new(1), &hints),
        ("pooling", &Pooling::new(), &hints),
        ("tome", &ToMe::new(), &hints),
        ("divprune", &DivPrune::new(), &hints),
        ("attention_top_k", &AttentionTopK::new(), &hints),
        ("token_corr", &TokenCorr::default(), &hints),
        ("efficient_vla", &EfficientVla::default(), &hints),
        ("submodular_select", &SubmodularSelect::default(), &TokenHints::default()),
        ("submodular_select, relevance", &SubmodularSelect::default(), &hints),
        ("diffrate, pruned=0", &DiffRate::default().with_pruned(0.0), &hints),
        ("diffrate", &DiffRate::default(), &hints),
        ("diffrate, pruned=1", &DiffRate::default().with_pruned(1.0), &hints),
        ("diffrate, class attention", &DiffRate::default(), &plain),
        ("mig_merge", &MigMerge::new(), &hints),
        ("concept_chunk", &ConceptChunk::new(), &hints),
        ("concept_chunk, mean=true", &ConceptChunk::new().with_mean(true), &hints),
        ("query_pooling", &QueryPooling::default(), &hints),
        ("submodular_select, graph", &SubmodularSelect::default().with_graph(8, 0.85, 4), &hints),
        (
            "submodular_select, lambda=0",
            &SubmodularSelect::default().with_lambda(0.0),
            &TokenHints::default(),
        ),
    ];
    let mut table = std::collections::BTreeMap::new();
    println!(
        "error of attention for all queries / the last 16; nats a token by covariances, ridge 0.1"
    );
    for (name, method, hints) in methods {
        let mut line = format!("| {name} |");
        for keep in [150, 75, 30] {
            let map = method.plan(x.view(), hints, keep).unwrap();
            let weights = method.weights(x.view(), hints, &map).unwrap();
            let [all, last] = layer.error(&map, weights.as_deref());
            let back =
                map.unmerge(map.merge(x.view(), weights.as_deref()).unwrap().view()).unwrap();
            let nats = gaussian(x.view(), back.view(), 0.1).unwrap();
            line += &format!(" {all:.3} / {last:.3}, {nats:.0} |");
            table.insert((name, keep), [all, last]);
        }
        println!("{line}");
    }
    let at = |name: &'static str, keep: usize| table[&(name, keep)];
    for keep in [150, 75] {
        assert!(at("diffrate, pruned=0", keep)[0] < at("random", keep)[0]);
        assert!(at("tome", keep)[0] < at("random", keep)[0]);
    }
    // Queries as means of eight: against the mean of what they give each.
    let cube = |heads: &[Array2<f32>]| {
        let views: Vec<_> = heads.iter().map(|head| head.view().insert_axis(Axis(1))).collect();
        concatenate(Axis(1), &views).expect("heads")
    };
    let (q, k, v) = (cube(&layer.q), cube(&layer.k), cube(&layer.v));
    let full = pooled_attention(q.view(), k.view(), v.view(), &TokenMap::identity(tokens)).unwrap();
    for x in [2, 4, 8] {
        let mut lengths = vec![x; tokens / x];
        lengths.extend((!tokens.is_multiple_of(x)).then_some(tokens % x));
        let groups = TokenMap::runs(&lengths).unwrap();
        let target = groups.merge(full.view(), None).unwrap();
        let pooled = pooled_attention(q.view(), k.view(), v.view(), &groups).unwrap();
        let first = full.select(Axis(0), &groups.firsts());
        let off = |a: &Array3<f32>| {
            (a - &target).mapv(|v| f64::from(v).powi(2)).sum()
                / target.mapv(|v| f64::from(v).powi(2)).sum()
        };
        println!(
            "pooled queries of {x}: {:.3}, the first query of {x}: {:.3}",
            off(&pooled),
            off(&first)
        );
        assert!(off(&pooled) < off(&first));
    }
    for error in [0.5, 0.25, 0.1] {
        let count = |method: &dyn TokenReduce| {
            fewest_tokens(method, x.view(), &hints, error).unwrap().map.targets()
        };
        println!(
            "tokens for an error of {error}: ToMe {}, pooling {}, concept_chunk {}, random {}",
            count(&ToMe::new()),
            count(&Pooling::new()),
            count(&ConceptChunk::new().with_mean(true)),
            count(&RandomKeep::new(1))
        );
    }
}

/// LeMo: of half of the tokens, by attention of the neediest block and by that of all.
#[test]
fn informative_tokens_of_a_story() {
    for l in [0, 2, 4] {
        let names = [format!("l{l}.q_rope"), format!("l{l}.k_rope"), format!("l{l}.v")];
        let Some(layer) = layer("causal_stories260k", [&names[0], &names[1], &names[2]]) else {
            return;
        };
        let cube = |heads: &[Array2<f32>]| {
            let views: Vec<_> = heads.iter().map(|head| head.view().insert_axis(Axis(1))).collect();
            concatenate(Axis(1), &views).expect("heads")
        };
        let (q, k) = (cube(&layer.q), cube(&layer.k));
        let (tokens, heads) = (q.dim().0, q.dim().1);
        let by = |block: usize| informativeness(q.view(), k.view(), block).unwrap();
        // Powers of the scores, query by key, of each head; what queries miss that see only the tokens kept, and themselves.
        let powers: Vec<Array2<f64>> = (0..heads)
            .map(|h| {
                let of = h * layer.k.len() / heads;
                let scores = layer.q[h].dot(&layer.k[of].t()) / (q.dim().2 as f32).sqrt();
                let seen = |((i, j), s): ((usize, usize), &f32)| {
                    if j <= i { f64::from(*s).exp() } else { 0.0 }
                };
                Array2::from_shape_fn(scores.dim(), |at| seen((at, &scores[at])))
            })
            .collect();
        let lost = |kept: &[bool]| {
            let (mut off, mut all) = (0.0, 0.0);
            for (h, powers) in powers.iter().enumerate() {
                let v = layer.v[h * layer.v.len() / heads].mapv(f64::from);
                let mix = |powers: &Array2<f64>| {
                    powers.dot(&v) / powers.sum_axis(Axis(1)).insert_axis(Axis(1))
                };
                let mut part = powers.clone();
                part.indexed_iter_mut()
                    .filter(|((i, j), _)| !kept[*j] && i != j)
                    .for_each(|(_, p)| *p = 0.0);
                let whole = mix(powers);
                off += (&whole - &mix(&part)).mapv(|v| v * v).sum();
                all += whole.mapv(|v| v * v).sum();
            }
            off / all
        };
        let best = |scores: &[f64]| {
            let mut kept = vec![false; tokens];
            common::ranked(scores)[..tokens / 2].iter().for_each(|t| kept[*t] = true);
            kept
        };
        let lot: Vec<f64> = common::values(tokens, 1, 3).iter().map(|v| f64::from(*v)).collect();
        println!(
            "layer {l}, half of the tokens: blocks of 16 {:.3}, of 64 {:.3}, one block {:.3}, by lot {:.3}",
            lost(&best(&by(16))),
            lost(&best(&by(64))),
            lost(&best(&by(tokens))),
            lost(&best(&lot))
        );
        assert!(lost(&best(&by(64))) < lost(&best(&lot)));
        // Summaries of two keys each to those of the values, which are other maps of the same states: fitted on the first
        // two thirds of the text.
        let names = [names[0].as_str(), &format!("l{l}.k_prerope"), &names[2]];
        let Some(layer) = self::layer("causal_stories260k", names) else { return };
        let pairs = TokenMap::runs(&vec![2; tokens / 2]).unwrap();
        let of = |heads: &[Array2<f32>]| pairs.merge(flat(heads).view(), None).unwrap();
        let (keys, values, fit) = (of(&layer.k), of(&layer.v), tokens / 3);
        let map =
            LinearMap::fit(keys.slice(s![..fit, ..]), values.slice(s![..fit, ..]), 0.01).unwrap();
        let meant = values.slice(s![fit.., ..]);
        let square = |x: Array2<f32>| x.mapv(|v| f64::from(v).powi(2)).sum();
        let mean = values.slice(s![..fit, ..]).mean_axis(Axis(0)).unwrap();
        let left = square(&map.align(keys.slice(s![fit.., ..])).unwrap() - &meant)
            / square(&meant - &mean);
        println!("layer {l}, alignment: {left:.3} of the variance is left");
    }
}
