//! Vectors made by the official implementations: indices equal, values within 1e-5.

use std::cell::RefCell;
use std::collections::BTreeSet;

use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis, concatenate};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, DType, RawTensor, Tensor};
use tensorpress_tokencomp::{
    DiffRate, DivPrune, Matching, Schedule, TokenHints, TokenMap, TokenReduce, kth_matching,
    match_tokens,
};

/// A file, and the names of the tensors that were read: nothing in it goes unchecked.
struct File(Checkpoint, RefCell<BTreeSet<String>>);

impl File {
    fn open(name: &str) -> Option<Self> {
        let path = data::find(&format!("golden/kv/{name}.safetensors"))?;
        Some(Self(Checkpoint::open(path).expect("a golden file"), RefCell::default()))
    }

    fn tensor(&self, name: &str) -> RawTensor {
        self.1.borrow_mut().insert(name.to_owned());
        self.0.tensor(name).expect("a tensor of the file")
    }

    /// The number of its tensors, all of which were read.
    fn tensors(&self) -> usize {
        let read = self.1.borrow();
        let unread: Vec<&str> = self.0.names().filter(|name| !read.contains(*name)).collect();
        assert!(unread.is_empty(), "unchecked: {unread:?}");
        read.len()
    }

    fn integers(&self, name: &str) -> Vec<usize> {
        let tensor = self.tensor(name);
        let bytes = tensor.bytes();
        match tensor.dtype() {
            DType::I64 => {
                bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as usize).collect()
            }
            DType::I32 => {
                bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b) as usize).collect()
            }
            other => panic!("{other:?} in a golden file"),
        }
    }

    /// A stored `[1, tokens, channels]`, or `[tokens, channels]`.
    fn states(&self, name: &str) -> Array2<f32> {
        let tensor = self.tensor(name);
        let shape = tensor.shape().to_vec();
        let [.., rows, cols] = shape[..] else { panic!("{shape:?}") };
        let all = tensor.to_matrix().expect("floats");
        all.to_shape((rows, cols)).expect("one sequence").to_owned()
    }
}

#[track_caller]
fn assert_close(ours: ArrayView2<'_, f32>, official: ArrayView2<'_, f32>, what: &str) {
    assert_eq!(ours.dim(), official.dim(), "{what}");
    let apart = ours.iter().zip(official).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-5, "{what}: {apart}");
}

/// The official place of the distillation token: second, after the class token.
fn official_order(map: &TokenMap, matching: &Matching, distilled: bool) -> TokenMap {
    if !distilled {
        return map.clone();
    }
    let (unmerged, all) = (matching.unmerged.len(), map.targets());
    let mut order: Vec<usize> = vec![0, unmerged];
    order.extend(1..unmerged);
    order.extend(unmerged + 1..all);
    let place = |target: usize| order.iter().position(|old| *old == target);
    let assignment: Vec<_> = (0..map.sources()).map(|s| map.target(s).and_then(place)).collect();
    TokenMap::new(&assignment, all).expect("a map")
}

fn check_matchings(file: &File, tokens: usize, rs: &[usize]) -> usize {
    let (metric, x) = (file.states("metric"), file.states("x"));
    let kinds: [(&str, &[usize]); 3] = [("plain", &[]), ("cls", &[0]), ("clsdist", &[0, 1])];
    let mut checked = 0;
    for (kind, protected) in kinds {
        for r in rs {
            let name = |what: &str| format!("{kind}.r{r}.{what}");
            let matching = match_tokens(metric.view(), *r, protected).expect("a matching");
            let halves = |tokens: &[usize]| tokens.iter().map(|t| t / 2).collect::<Vec<_>>();
            assert!(
                matching.merged.iter().all(|t| t % 2 == 0)
                    && matching.into.iter().all(|t| t % 2 == 1)
            );
            assert_eq!(
                halves(&matching.merged),
                file.integers(&name("src_idx")),
                "{}",
                name("src")
            );
            assert_eq!(halves(&matching.into), file.integers(&name("dst_idx")), "{}", name("dst"));
            assert_eq!(
                halves(&matching.unmerged),
                file.integers(&name("unm_idx")),
                "{}",
                name("unm")
            );
            let map = matching.map().expect("a map");
            let map = official_order(&map, &matching, kind == "clsdist");
            let rows: Vec<usize> = (0..tokens).map(|t| map.target(t).expect("merged")).collect();
            assert_eq!(rows, file.integers(&name("source_row_of_token")), "{}", name("rows"));
            let merged = map.merge(x.view(), None).expect("merges");
            assert_close(merged.view(), file.states(&name("x_wavg")).view(), &name("x_wavg"));
            let sizes =
                Array2::from_shape_vec((map.targets(), 1), map.sizes(None).unwrap()).unwrap();
            assert_close(sizes.view(), file.states(&name("size")).view(), &name("size"));
            if kind == "plain" {
                let official = file.states(&name("x_mean_mode"));
                assert_close(merged.view(), official.view(), &name("x_mean_mode"));
                let back = map.unmerge(merged.view()).expect("unmerges");
                assert_close(back.view(), file.states(&name("unmerged")).view(), &name("unmerged"));
            }
            checked += 1;
        }
    }
    for k in 2..=4 {
        let matching = kth_matching(metric.view(), k).expect("a matching");
        let into: Vec<usize> = matching.into.iter().map(|t| t / k).collect();
        assert_eq!(into, file.integers(&format!("kth{k}.dst_idx")), "k = {k}");
        let merged = matching.map().unwrap().merge(x.view(), None).expect("merges");
        assert_close(merged.view(), file.states(&format!("kth{k}.x_mean_mode")).view(), "kth");
        checked += 1;
    }
    checked
}

/// Two layers: the second matches what the first left, and sizes are weights.
fn check_chain(file: &File, tokens: usize, rs: [usize; 2]) {
    let (metric, x) = (file.states("metric"), file.states("x"));
    let first = match_tokens(metric.view(), rs[0], &[0]).unwrap().map().unwrap();
    let metric2 = file.states("chain.metric2");
    let second = match_tokens(metric2.view(), rs[1], &[0]).unwrap().map().unwrap();
    let both = first.then(&second).unwrap();
    let rows: Vec<usize> = (0..tokens).map(|t| both.target(t).unwrap()).collect();
    assert_eq!(rows, file.integers("chain.source_row_of_token"));
    let merged = both.merge(x.view(), None).unwrap();
    assert_close(merged.view(), file.states("chain.x2").view(), "chain.x2");
    let sizes = both.sizes(None).unwrap();
    assert_eq!(sizes, file.states("chain.size2").into_raw_vec_and_offset().0);
}

#[test]
fn tome_is_the_official_one() {
    let mut checked = 0;
    for (name, tokens, rs) in [("tome_t96", 96, &[8, 24][..]), ("tome_t97", 97, &[4, 16, 1000])] {
        let Some(file) = File::open(name) else { return };
        let matchings = check_matchings(&file, tokens, rs);
        let chain = file.states("chain.x2").nrows();
        let first = tokens - file.states("chain.metric2").nrows();
        check_chain(&file, tokens, [first, tokens - first - chain]);
        let schedules =
            [("const8", 8, 0.0), ("dec16", 16, -1.0), ("inc16", 16, 1.0), ("half13", 13, 0.5)];
        for (kind, r, inflection) in schedules {
            let official = file.integers(&format!("parse_r.12.{kind}"));
            assert_eq!(
                Schedule::line(12, r, inflection).unwrap(),
                Schedule::Tokens(official),
                "{kind}"
            );
        }
        let list = Schedule::Tokens(vec![1, 2, 3]);
        let removed: Vec<usize> = (0..12).map(|layer| 100 - list.keep(layer, 100, 0)).collect();
        assert_eq!(removed, file.integers("parse_r.12.list"));
        let tensors = file.tensors();
        println!(
            "checked: {name}, all {tensors} tensors: {matchings} matchings, a chain, 5 schedules"
        );
        checked += 1;
    }
    println!("checked: {checked} files of ToMe");
}

#[test]
fn divprune_is_the_official_one() {
    let Some(file) = File::open("divprune") else { return };
    let x = file.states("in.x");
    let hints = TokenHints::default();
    for ratio in ["0.1", "0.25", "0.5"] {
        let official = file.integers(&format!("divprune_r{ratio}.order"));
        let ours = DivPrune::new().order(x.view(), &hints, official.len()).expect("chosen");
        assert_eq!(ours, official, "{ratio}");
        let map = DivPrune::new().plan(x.view(), &hints, official.len()).expect("a plan");
        let mut kept = official.clone();
        kept.sort_unstable();
        assert_eq!(map.firsts(), kept);
        let rows: Vec<_> = kept.iter().map(|t| x.row(*t).insert_axis(Axis(0))).collect();
        assert_eq!(map.merge(x.view(), None).unwrap(), concatenate(Axis(0), &rows).unwrap());
    }
    println!("checked: 1 file of DivPrune, all {} tensors: 3 ratios", file.tensors());
}

/// The official code merges tokens that are sorted already, the class token first: here they are back in the order of the
/// sequence, with an attention that sorts them so.
#[test]
fn diffrate_is_the_official_one() {
    let Some(file) = File::open("zipcache_diffrate_uncomp") else { return };
    let (metric, sorted) =
        (file.states("diffrate.metric_sorted"), file.states("diffrate.x_sorted"));
    let order = file.integers("diffrate.order");
    let tokens = order.len();
    let (mut keys, mut x) = (metric.clone(), sorted.clone());
    let mut attention = vec![0.0; tokens];
    for (rank, token) in order.iter().enumerate() {
        keys.row_mut(*token).assign(&metric.row(rank));
        x.row_mut(*token).assign(&sorted.row(rank));
        attention[*token] = (tokens - rank) as f32;
    }
    let protected = [order[0]];
    let hints = TokenHints::default().with_class_attention(&attention).with_protected(&protected);
    for keep in [110, 60] {
        let name = |what: &str| format!("diffrate.keep{keep}.{what}");
        let map = DiffRate::default().plan_counts(keys.view(), &hints, [tokens, keep]).unwrap();
        let merged = map.merge(x.view(), None).unwrap();
        // Ours are in the order of the sequence, the official ones in that of attention.
        let row = |token: &usize| merged.row(map.target(*token).unwrap()).insert_axis(Axis(0));
        let rows: Vec<_> = order[..keep].iter().map(row).collect();
        let ours = concatenate(Axis(0), &rows).unwrap();
        for what in ["x_mean", "x_sizeweighted"] {
            assert_close(ours.view(), file.states(&name(what)).view(), &name(what));
        }
        let official = file.tensor(&name("sim_max")).to_matrix().unwrap();
        assert_eq!(official.len(), tokens - keep);
        let groups = map.groups(tokens).unwrap();
        for (token, official) in order[keep..].iter().zip(&official) {
            let group = &groups[map.target(*token).unwrap()];
            let stays = group.iter().find(|t| order[..keep].contains(*t)).expect("one that stays");
            let (a, b) = (keys.row(*token), keys.row(*stays));
            let cosine = a.dot(&b) / (a.dot(&a) * b.dot(&b)).sqrt();
            assert!((cosine - official).abs() < 1e-5, "{cosine} {official}");
        }
        // What is pruned is the end of the order, and nothing that is left merges differently for it.
        let fewer = DiffRate::default().plan_counts(keys.view(), &hints, [keep + 5, keep]).unwrap();
        let dropped = (0..tokens).filter(|token| fewer.target(*token).is_none());
        let mut last = order[keep + 5..].to_vec();
        last.sort_unstable();
        assert_eq!(dropped.collect::<Vec<_>>(), last);
        for token in &order[..keep + 5] {
            let with = |t: &&usize| map.target(**t) == map.target(*token);
            let stays = order[..keep].iter().find(with).expect("one that stays");
            assert_eq!(fewer.target(*token), fewer.target(*stays));
        }
    }
    println!("checked: DiffRate, 2 counts, all of its tensors");
}
