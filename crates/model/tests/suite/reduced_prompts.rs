//! Decoders whose prompts become fewer tokens on the way.

use std::sync::Mutex;

use tensorpress_kvcache::KvRecipe;
use tensorpress_model::text::{self, Limits};
use tensorpress_model::{Decoder, Generation, KvCache, Reduced, Reduction, generate};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, ArrayView3, ArrayViewMut3, Axis, s};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{ErrorKind, Result, Scratch};
use tensorpress_tokencomp::{
    AttentionTopK, ConceptChunk, DiffRate, DivPrune, EfficientVla, GeometryMerge, MigMerge,
    Pooling, QueryPooling, RandomKeep, Schedule, SubmodularSelect, ToMe, TokenCorr, TokenHints,
    TokenMap, TokenReduce,
};

use crate::backward::llama;
use crate::common::{Tiny, open};
use crate::slow::Slow;

/// What a method is told.
type Told = [Vec<f32>; 3];

/// Plans that are given, one a call; notes what it is told.
#[derive(Debug, Default)]
struct Given {
    plans: Mutex<Vec<TokenMap>>,
    told: Mutex<Vec<Told>>,
}

impl Given {
    fn new(plans: &[TokenMap]) -> Self {
        Self { plans: Mutex::new(plans.iter().rev().cloned().collect()), told: Mutex::default() }
    }
}

impl TokenReduce for Given {
    fn id(&self) -> &'static str {
        "given"
    }

    fn plan(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<TokenMap> {
        hints.check(x, keep)?;
        let all = [hints.attention, hints.class_attention, hints.relevance];
        self.told.lock().unwrap().push(all.map(|values| values.unwrap().to_vec()));
        Ok(self.plans.lock().unwrap().pop().unwrap())
    }
}

/// Tokens in groups, and nowhere else, as a map.
fn map(tokens: usize, groups: &[Vec<usize>]) -> TokenMap {
    let of = |token: usize| groups.iter().position(|group| group.contains(&token));
    // In the order of first tokens, as methods give it.
    TokenMap::new(&(0..tokens).map(of).collect::<Vec<_>>(), groups.len()).unwrap().sorted()
}

fn read(
    model: &Decoder,
    ids: &[u32],
    (method, schedule): (&dyn TokenReduce, &Schedule),
    cache: &mut [Box<dyn KvCache>],
) -> Result<Reduced> {
    let reduction = Reduction { method, schedule, protected: &[0] };
    model.read_reduced(ids, reduction, cache, &mut Scratch::default())
}

fn last_logits(model: &Decoder, read: &Reduced) -> Vec<f32> {
    let last = read.hidden.slice(s![-1.., ..]);
    model.head().logits(last, &mut Scratch::default()).unwrap().into_raw_vec_and_offset().0
}

fn apart(found: &[f32], exact: tensorpress_tensor::ndarray::ArrayView1<'_, f64>) -> f64 {
    found.iter().zip(exact).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
}

/// Dropped and merged tokens, against a forward pass in f64 that knows positions and sizes: the last logits of the prompt, and
/// those of what follows it; once behind one block, and once behind two.
#[test]
fn later_blocks_see_what_is_left_where_it_stood() {
    let tiny = Tiny::new(4, 2, 8);
    let (_folder, source) = tiny.source();
    let mut models = vec![(source.unwrap(), llama(4, 2, 8), vec![0])];
    if let Some(folder) = data::find("data/models/stories260k") {
        models.push((open(folder).unwrap(), llama(8, 4, 8), vec![1]));
        let (source, kind, _) = models.last().unwrap();
        models.push((open(source.folder().unwrap()).unwrap(), *kind, vec![0, 3]));
    }
    for (source, kind, behind) in models {
        let model = source.decoder().unwrap();
        let ids: Vec<u32> = (0..23u32).map(|i| (i * 17 + 5) % 60).collect();
        let (prompt, more) = ids.split_at(18);
        let first: Vec<Vec<usize>> =
            [&[0][..], &[3], &[2, 5], &[7], &[4, 8, 6], &[10], &[9, 12, 11], &[13], &[15], &[17]]
                .map(<[usize]>::to_vec)
                .to_vec();
        let second: Vec<Vec<usize>> =
            [&[0][..], &[2, 3], &[1, 6], &[8], &[9]].map(<[usize]>::to_vec).to_vec();
        let stages = [(18, first), (10, second)];
        let mut takes = vec![0; source.blocks()];
        let (mut plans, mut slow_plans) = (Vec::new(), Vec::new());
        for ((tokens, groups), block) in stages.iter().zip(&behind) {
            takes[*block] = tokens - groups.len();
            plans.push(map(*tokens, groups));
            // What follows the prompt stays alone.
            let rest = (*tokens..*tokens + more.len()).map(|token| vec![token]);
            slow_plans.push((*block, groups.iter().cloned().chain(rest).collect::<Vec<_>>()));
        }
        let slow = Slow::new(&source, kind);
        let exact = slow.shortened(&ids, &slow_plans);
        let mut cache = model.cache();
        let method = Given::new(&plans);
        let found = read(&model, prompt, (&method, &Schedule::Tokens(takes)), &mut cache).unwrap();
        let rows = found.hidden.nrows();
        assert_eq!(rows, stages[behind.len() - 1].1.len());
        assert_eq!(found.map.lasts().last(), Some(&17));
        assert!(apart(&last_logits(&model, &found), exact.row(rows - 1)) < 2e-4);
        for (block, cache) in cache.iter().enumerate() {
            let held = behind.iter().take_while(|at| **at < block).count();
            let held = [18, 10, 5][held] as u64;
            let bytes = 2 * 4 * (model.config().kv_heads * model.config().head_dim) as u64 * held;
            assert_eq!(cache.len(), 18);
            assert!(cache.bytes() >= bytes && cache.bytes() < bytes + 18 * 33, "block {block}");
        }
        for (step, id) in more.iter().enumerate() {
            let logits = model.logits_last(&[*id], &mut cache, &mut Scratch::default()).unwrap();
            let apart = apart(&logits, exact.row(rows + step));
            assert!(apart < 2e-4, "{behind:?}, step {step}: {apart}");
        }
        // What a plan is told of attention.
        let attended = &slow.attended.borrow()[&behind[0]];
        let (heads, prompt) = (kind.heads as f64, s![..18, ..18]);
        let seen = attended.slice(prompt);
        let received = seen.sum_axis(Axis(0)) / (heads * 18.0);
        let last = &seen.row(17) / heads;
        let [mean, class, relevance] = &method.told.lock().unwrap()[0];
        assert!(apart_all(mean, received.view()) && apart_all(class, last.view()));
        assert_eq!(class, relevance);
    }
}

fn apart_all(found: &[f32], exact: tensorpress_tensor::ndarray::ArrayView1<'_, f64>) -> bool {
    found.len() == exact.len() && apart(found, exact) < 1e-6
}

/// No reduction is the plain decoder, to the bit, in caches of any kind.
#[test]
fn nothing_removed_changes_nothing() {
    let model = Tiny::new(4, 2, 32).decoder();
    let ids: Vec<u32> = (0..40u32).map(|i| (i * 13 + 1) % 60).collect();
    let scratch = &mut Scratch::default();
    for recipe in ["f32", "kivi(bits=4)", "h2o(tokens=16)", "minicache"] {
        let recipe: KvRecipe = recipe.parse().unwrap();
        let (mut a, mut b) = (model.caches(&recipe).unwrap(), model.caches(&recipe).unwrap());
        let method: (&dyn TokenReduce, _) = (&ToMe::new(), &Schedule::Tokens(vec![0]));
        let found = read(&model, &ids[..30], method, &mut a).unwrap();
        let plain = model.forward(&ids[..30], &mut b, scratch).unwrap();
        assert_eq!(found.map, TokenMap::identity(30));
        assert_eq!(model.head().logits(found.hidden.view(), scratch).unwrap(), plain);
        for id in &ids[30..] {
            let (x, y) = (
                model.logits_last(&[*id], &mut a, scratch).unwrap(),
                model.logits_last(&[*id], &mut b, scratch).unwrap(),
            );
            assert_eq!(x, y, "{recipe:?}");
        }
    }
}

/// Every method that needs nothing of pictures: the last token stays where it stood, later caches hold less, and the model goes
/// on; the same again gives the same.
#[test]
fn methods_shorten_prompts() {
    let model = Tiny::new(4, 2, 8).decoder();
    let ids: Vec<u32> = (0..40u32).map(|i| (i * 13 + i * i * 3 + 1) % 60).collect();
    let methods: [&dyn TokenReduce; 12] = [
        &AttentionTopK::new(),
        &RandomKeep::new(3),
        &DivPrune::new(),
        &SubmodularSelect::default(),
        &TokenCorr::default(),
        &EfficientVla::default(),
        &ToMe::new(),
        &Pooling::new(),
        &DiffRate::default(),
        &ConceptChunk::new(),
        &QueryPooling::default(),
        &MigMerge::new(),
    ];
    let schedule = Schedule::Tokens(vec![15]);
    for method in methods {
        let mut runs = Vec::new();
        for recipe in ["f32", "f32", "snapkv(tokens=20, window=4)"] {
            let mut cache = model.caches(&recipe.parse().unwrap()).unwrap();
            let found = read(&model, &ids, (method, &schedule), &mut cache);
            let found = found.unwrap_or_else(|error| panic!("{}: {error}", method.id()));
            assert_eq!(found.map.targets(), 25, "{}", method.id());
            assert_eq!(found.map.target(39), Some(24));
            assert_eq!((found.map.counts()[24], found.map.target(0)), (1, Some(0)));
            assert!(cache.iter().all(|cache| cache.len() == 40));
            assert!(recipe != "f32" || cache[1].bytes() < cache[0].bytes());
            let how = Generation { max_tokens: 6, ..Generation::default() };
            let new = generate(&model, &[7], how, &mut cache, &mut |_| Ok(true)).unwrap();
            runs.push((last_logits(&model, &found), new));
        }
        assert_eq!(runs[0], runs[1], "{}", method.id());
    }
}

/// A cache that knows nothing of tokens that left.
#[derive(Debug)]
struct Old(Box<dyn KvCache>);

impl KvCache for Old {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn append(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) -> Result<()> {
        self.0.append(keys, values)
    }

    fn attend(
        &mut self,
        queries: ArrayView3<'_, f32>,
        first: usize,
        window: Option<usize>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.0.attend(queries, first, window, out, scratch)
    }
}

#[test]
fn wrong_prompts_are_refused() {
    let model = Tiny::new(4, 2, 8).decoder();
    let half = Schedule::Tokens(vec![4]);
    let ids: Vec<u32> = (0..8).collect();
    let refuse = |ids: &[u32], method: &dyn TokenReduce, mut cache: Vec<Box<dyn KvCache>>| {
        read(&model, ids, (method, &half), &mut cache).unwrap_err()
    };
    let top = AttentionTopK::new();
    let mut begun = model.cache();
    model.forward(&ids[..3], &mut begun, &mut Scratch::default()).unwrap();
    let error = refuse(&ids, &top, begun);
    assert!(
        error.to_string().contains("a cache of 3 tokens: a prompt is reduced whole"),
        "{error}"
    );
    assert_eq!(refuse(&[], &top, model.cache()).kind(), ErrorKind::InvalidArgument);
    assert!(refuse(&ids, &top, Vec::new()).to_string().contains("0 caches for 2 blocks"));
    let old = || model.cache().into_iter().map(|cache| Box::new(Old(cache)) as _).collect();
    assert_eq!(refuse(&ids, &top, old()).kind(), ErrorKind::Unsupported);
    let shared = model.caches(&"minicache".parse().unwrap());
    if let Ok(shared) = shared {
        assert_eq!(refuse(&ids, &top, shared).kind(), ErrorKind::Unsupported);
    }
    let waiting = model.caches(&"f32 | kvzip(keep=0.5)".parse().unwrap()).unwrap();
    let error = refuse(&ids, &top, waiting);
    assert!(error.to_string().contains("said again"), "{error}");
    let error = refuse(&ids, &GeometryMerge::default(), model.cache());
    assert!(error.to_string().contains("needs"), "{error}");
    let drops = Given::new(&[TokenMap::keep(8, &[0, 1, 2, 3]).unwrap()]);
    let error = refuse(&ids, &drops, model.cache());
    assert!(error.to_string().contains("given dropped the protected token 7"), "{error}");
    if let Some(folder) = data::find("golden/models/mamba2") {
        let model = open(folder).unwrap().decoder().unwrap();
        let error = read(&model, &ids, (&top, &half), &mut model.cache()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("token reduction in block 0"), "{error}");
    }
}

/// Sums of -ln p of what follows and of KL divergence from the model that reads the whole prompt, and over how many tokens.
fn losses(
    (model, whole): (&Decoder, &Array2<f32>),
    ids: &[u32],
    how: Option<(&dyn TokenReduce, usize)>,
) -> [f64; 3] {
    let half = ids.len() / 2;
    let logits = match how {
        None => whole.clone(),
        Some((method, behind)) => {
            let mut takes = vec![0; behind];
            takes.push((half - 1) / 2);
            let mut cache = model.cache();
            let how = (method, &Schedule::Tokens(takes));
            read(model, &ids[..half - 1], how, &mut cache).unwrap();
            continued(model, ids, &mut cache)
        }
    };
    let mut sums = [0.0; 3];
    for ((found, exact), next) in logits.rows().into_iter().zip(whole.rows()).zip(&ids[half..]) {
        let [q, p] = [found, exact].map(|row| {
            let top = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            let sum: f64 = row.iter().map(|z| f64::from(z - top).exp()).sum();
            row.mapv(|z| f64::from(z - top) - sum.ln())
        });
        sums[0] -= q[*next as usize];
        sums[1] += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        sums[2] += 1.0;
    }
    sums
}

/// Logits behind the last token of the first half and behind all that follow it but the last.
fn continued(model: &Decoder, ids: &[u32], cache: &mut [Box<dyn KvCache>]) -> Array2<f32> {
    let from = ids.len() / 2 - 1;
    model.forward(&ids[from..ids.len() - 1], cache, &mut Scratch::default()).unwrap()
}

/// Half of the first half of each story behind some blocks of stories3m: the KL divergence of the second half, by block and
/// method.
fn half_dropped(
    stories: usize,
    blocks: &[usize],
    methods: &[&dyn TokenReduce],
) -> Option<Vec<Vec<f64>>> {
    let source = open(data::find("data/models/stories3m")?).unwrap();
    let file = data::find("data/text/tinystories_val_250stories.jsonl")?;
    let limits = Limits { max_segments: Some(stories), max_tokens: Some(400) };
    let (text, tokenizer) = (text::read(&file).unwrap(), source.tokenizer().unwrap());
    let context = source.config().context;
    let stories = text::segments(&text, &file, &tokenizer, context, limits).unwrap();
    let model = source.decoder().unwrap().materialise().unwrap();
    let read_whole = |ids: &Vec<u32>| {
        let mut cache = model.cache();
        let prompt = &ids[..ids.len() / 2 - 1];
        model.forward(prompt, &mut cache, &mut Scratch::default()).unwrap();
        continued(&model, ids, &mut cache)
    };
    let whole: Vec<Array2<f32>> = stories.iter().map(read_whole).collect();
    let mean = |how| {
        let mut sums = [0.0; 3];
        for (ids, whole) in stories.iter().zip(&whole) {
            let found = losses((&model, whole), ids, how);
            sums.iter_mut().zip(found).for_each(|(sum, x)| *sum += x);
        }
        [sums[0] / sums[2], sums[1] / sums[2]]
    };
    let [nll, none] = mean(None);
    assert_eq!(none, 0.0);
    println!("checked: stories3m, {} stories, whole prompts: NLL {nll:.4}", stories.len());
    let mut all = Vec::new();
    for behind in blocks {
        let mut row = Vec::new();
        for method in methods {
            let [nll, kld] = mean(Some((*method, *behind)));
            let id = method.id();
            println!("checked: half behind block {behind}, {id}: NLL {nll:.4}, KLD {kld:.4}");
            row.push(kld);
        }
        all.push(row);
    }
    Some(all)
}

/// What a real model loses falls the later tokens go.
#[test]
fn tokens_that_go_later_are_missed_less() {
    let Some(klds) = half_dropped(4, &[0, 4], &[&AttentionTopK::new(), &RandomKeep::new(1)]) else {
        return;
    };
    for (early, late) in klds[0].iter().zip(&klds[1]) {
        assert!(early > late && *late > 0.0, "{klds:?}");
    }
}

/// The table of the page.
#[test]
#[ignore = "minutes: cargo test -p tensorpress-model --test suite -- --ignored half_of"]
fn half_of_the_prompts() {
    let methods: [&dyn TokenReduce; 6] = [
        &AttentionTopK::new(),
        &RandomKeep::new(1),
        &TokenCorr::default(),
        &SubmodularSelect::default(),
        &ToMe::new(),
        &Pooling::new(),
    ];
    let Some(klds) = half_dropped(60, &[0, 1, 2, 3, 4], &methods) else { return };
    assert!(klds.iter().flatten().all(|kld| kld.is_finite() && *kld > 0.0));
}
