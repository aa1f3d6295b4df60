//! Contexts said again to caches that wait for it: who says what where, against a pass over the whole text.

use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, MutexGuard};

use tensorpress_kvcache::{Cache, KvRecipe, KvShape, KvStore};
use tensorpress_model::{
    Block, Decoder, KvCache, Observer, Passages, RepeatPrompts, Repeats, SharedInput, Source,
    ThroughCache, recall,
};
use tensorpress_tensor::ndarray::{Array2, Array3, ArrayView2, ArrayView3, ArrayViewMut3};
use tensorpress_tensor::{Error, ErrorKind, Registry, Result, Scratch};

fn demo() -> Decoder {
    let source = Source::demo(&Registry::default()).expect("the demo model");
    source.decoder().expect("a model").materialise().expect("dense")
}

fn context(model: &Decoder, tokens: usize) -> Vec<u32> {
    let drawn = Passages::default().with_count(1).with_length(tokens - 1).draw(model.config());
    model.config().bos.into_iter().chain(drawn.expect("a passage").remove(0)).collect()
}

/// A cache that its maker can still look at.
#[derive(Debug, Clone)]
struct Seen(Arc<Mutex<Cache>>);

impl Seen {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.0.lock().expect("nothing panics")
    }

    /// Of every block, as a recipe says.
    fn all(model: &Decoder, recipe: &str) -> Vec<Self> {
        let recipe: KvRecipe = recipe.parse().expect(recipe);
        let outputs = model.blocks().iter().map(|block| Arc::new(output(block))).collect();
        let recipe = recipe.with_repetition().with_outputs(outputs);
        let made = recipe.caches_of(model.blocks().len(), shape(model)).expect("caches");
        made.into_iter().map(|cache| Self(Arc::new(Mutex::new(cache)))).collect()
    }

    fn boxed(all: &[Self]) -> Vec<Box<dyn KvCache>> {
        all.iter().map(|seen| Box::new(seen.clone()) as _).collect()
    }
}

fn shape(model: &Decoder) -> KvShape {
    let config = model.config();
    KvShape::new(config.heads, config.kv_heads, config.head_dim).expect("a shape")
}

/// The weight `[hidden, heads * head_dim]` behind attention.
fn output(block: &Block) -> Array2<f32> {
    let o = block.linears().find(|linear| linear.name().contains("o_proj")).expect("a projection");
    o.decode().expect("decodes")
}

impl KvCache for Seen {
    fn len(&self) -> usize {
        self.cache().len()
    }

    fn bytes(&self) -> u64 {
        self.cache().bytes()
    }

    fn append(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) -> Result<()> {
        self.cache().append(keys, values)
    }

    fn attend(
        &mut self,
        queries: ArrayView3<'_, f32>,
        _: usize,
        window: Option<usize>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.cache().attend(queries, window, out, scratch)
    }

    fn repeats(&mut self) -> Option<&mut dyn Repeats> {
        Some(self)
    }
}

impl Repeats for Seen {
    fn repetition(&self) -> Option<usize> {
        self.cache().repetition().map(|repetition| repetition.chunk)
    }

    fn begin_repetition(&mut self, part: Range<usize>) -> Result<()> {
        self.cache().begin_repetition(part)
    }

    fn tell_hidden_norms(&mut self, norms: &[f32]) {
        self.cache().tell_hidden_norms(norms);
    }

    fn end_repetition(&mut self) -> Result<()> {
        self.cache().end_repetition()
    }

    fn abandon_repetition(&mut self) {
        self.cache().abandon_repetition();
    }
}

/// Notes the queries that a cache is asked.
#[derive(Debug)]
struct Asked(Cache, Vec<Array3<f32>>);

impl KvCache for Asked {
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
        _: usize,
        window: Option<usize>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.1.push(queries.to_owned());
        self.0.attend(queries, window, out, scratch)
    }
}

/// Notes how long the states are that attention reads.
struct Norms(Vec<f64>);

impl Observer for Norms {
    fn input(&mut self, input: SharedInput, x: ArrayView2<'_, f32>) -> Result<ControlFlow<()>> {
        if input == SharedInput::Attention {
            let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            self.0 = x.outer_iter().map(|row| norm(&row.to_vec())).collect();
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// By block, head of keys and token: the most that each part, said behind the whole context, looks at it. One pass over
/// context, prompt and part for each, in f64 from the queries on.
fn slow(
    model: &Decoder,
    context: &[u32],
    said: &[(Range<usize>, Vec<u32>)],
    plus: bool,
) -> Vec<Vec<Vec<f64>>> {
    let (shape, n) = (shape(model), context.len());
    let mut most = vec![vec![vec![0.0f64; n]; shape.kv_heads]; model.blocks().len()];
    for (part, said) in said {
        let ids: Vec<u32> = context.iter().chain(said).copied().collect();
        let scratch = &mut Scratch::default();
        let mut hidden = model.embedding().embed(&ids, scratch).expect("embeds");
        for (block, most) in model.blocks().iter().zip(&mut most) {
            let (mut asked, mut norms) = (Asked(block.cache(), Vec::new()), Norms(Vec::new()));
            block.forward(hidden.view_mut(), &mut asked, Some(&mut norms), scratch).expect("runs");
            let (queries, output) = (&asked.1[0], output(block));
            for head in 0..shape.heads {
                let of = head / shape.group();
                let (keys, values) = asked.0.store().decode(of);
                for i in n..ids.len() {
                    let e = |j: usize| -> f64 {
                        let q = |c: usize| f64::from(queries[[i, head, c]]);
                        let dot = (0..shape.head_dim).map(|c| q(c) * f64::from(keys[[j, c]]));
                        (dot.sum::<f64>() / (shape.head_dim as f64).sqrt()).exp()
                    };
                    let beside = (0..4.min(part.start)).chain(n..i + 1);
                    let sum: f64 = beside.chain(part.clone()).map(e).sum();
                    for j in part.clone() {
                        let mut weight = e(j) / sum;
                        if plus {
                            let made = |row: ArrayView2<'_, f32>, r: usize| -> f64 {
                                let at = head * shape.head_dim;
                                let term = |c: usize| {
                                    f64::from(row[[r, at + c]]) * f64::from(values[[j, c]])
                                };
                                (0..shape.head_dim).map(term).sum()
                            };
                            let rows = 0..output.nrows();
                            let norm = rows.map(|r| made(output.view(), r).powi(2)).sum::<f64>();
                            weight *= norm.sqrt() / norms.0[i];
                        }
                        most[of][j] = most[of][j].max(weight);
                    }
                }
            }
        }
    }
    most
}

/// The decoder says the whole context, or each part behind its prompt, at the positions behind the context; every layer
/// keeps its best, across heads.
#[test]
fn the_decoder_says_the_context_again() {
    let model = demo();
    let ids = context(&model, 24);
    let prompts = |first: &[u32], next: &[u32], tail: usize, end: &[u32]| {
        let mut prompts = RepeatPrompts::default();
        (prompts.first, prompts.next) = (first.to_vec(), next.to_vec());
        (prompts.tail, prompts.end) = (tail, end.to_vec());
        prompts
    };
    let cat = |parts: &[&[u32]]| parts.concat();
    let cases = [
        (RepeatPrompts::default(), 2048, vec![(0..24, ids[1..].to_vec())]),
        (
            prompts(&[9, 8], &[7], 3, &[5]),
            10,
            vec![
                (0..10, cat(&[&[9, 8, 5], &ids[1..10]])),
                (10..20, cat(&[&[7], &ids[7..10], &[5], &ids[10..20]])),
                (20..24, cat(&[&[7], &ids[17..20], &[5], &ids[20..24]])),
            ],
        ),
    ];
    let mut model = model;
    for (prompts, chunk, said) in cases {
        model = model.with_repeat_prompts(prompts);
        for plus in [false, true] {
            let recipe = format!("f32 | kvzip(tokens=9, plus={plus}, chunk={chunk})");
            let seen = Seen::all(&model, &recipe);
            let mut caches = Seen::boxed(&seen);
            let scratch = &mut Scratch::default();
            let logits = model.forward(&ids, &mut caches, scratch).expect("runs");
            let exact = model.forward(&ids, &mut model.cache(), scratch).expect("runs");
            assert!(crate::common::max_difference(&logits, &exact) < 1e-4, "read before it goes");
            let scores = slow(&model, &ids, &said, plus);
            for (block, (seen, scores)) in seen.iter().zip(&scores).enumerate() {
                let cache = seen.cache();
                let kept: Vec<_> = (0..scores.len()).map(|h| cache.store().positions(h)).collect();
                assert_eq!(cache.len(), ids.len());
                assert_eq!(kept.iter().map(Vec::len).sum::<usize>(), 9 * scores.len());
                let (mut least, mut most) = (f64::INFINITY, 0.0f64);
                for (kept, scores) in kept.iter().zip(scores) {
                    assert_eq!(kept[..4], [0, 1, 2, 3], "sinks");
                    for (t, score) in scores.iter().enumerate().skip(4) {
                        match kept.contains(&t) {
                            true => least = least.min(*score),
                            false => most = most.max(*score),
                        }
                    }
                }
                // Rounding decides between scores that are next to the same.
                assert!(least >= most * (1.0 - 1e-3), "{recipe}, block {block}: {least} {most}");
            }
            // What comes later stays.
            model.forward(&[3, 4, 5], &mut caches, scratch).expect("runs");
            model.forward(&[6], &mut caches, scratch).expect("runs");
            let held = seen[0].cache().store().positions(0);
            assert!(held.ends_with(&[24, 25, 26, 27]), "{held:?}");
            // The model's own caches are such ones.
            let mut own = model.caches(&recipe.parse().expect("a recipe")).expect("caches");
            model.forward(&ids, &mut own, scratch).expect("runs");
            let bytes: u64 = own.iter().map(|cache| cache.bytes()).sum();
            let few = shape(&model).kv_heads * 9 * model.blocks().len();
            assert_eq!(bytes, (few * (8 * shape(&model).head_dim + 4)) as u64);
        }
    }
}

/// A cache that cannot take anything back, or fails.
#[derive(Debug)]
struct Stubborn(Cache, bool);

impl KvCache for Stubborn {
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
        if self.1 && first > 0 {
            return Err(Error::unsupported("enough"));
        }
        self.0.attend(queries, window, out, scratch)
    }

    fn repeats(&mut self) -> Option<&mut dyn Repeats> {
        self.1.then_some(&mut self.0 as &mut dyn Repeats)
    }
}

#[test]
fn what_cannot_be_said_again_is_refused() {
    let model = demo();
    let ids = context(&model, 20);
    let recipe = "kvzip(keep=0.5)";
    let scratch = &mut Scratch::default();
    let mut forward = |caches: &mut Vec<Box<dyn KvCache>>, ids: &[u32]| {
        model.forward(ids, caches, scratch).map(drop)
    };
    // Before anything is read.
    let mut caches = model.caches(&recipe.parse().expect("a recipe")).expect("caches");
    *caches.last_mut().expect("blocks") = Box::new(Stubborn(model.blocks()[0].cache(), false));
    let error = forward(&mut caches, &ids).unwrap_err();
    assert_eq!((error.kind(), caches[0].len()), (ErrorKind::Unsupported, 0), "{error}");
    assert!(error.message().contains(&format!("block {}", caches.len() - 1)), "{error}");
    let mut caches = model.caches(&recipe.parse().expect("a recipe")).expect("caches");
    let half = model.config().context / 2 + 2;
    let long: Vec<u32> = ids.iter().copied().cycle().take(half).collect();
    let error = forward(&mut caches, &long).unwrap_err();
    assert_eq!((error.kind(), caches[0].len()), (ErrorKind::InvalidArgument, 0), "{error}");
    // What fails within leaves caches that wait.
    *caches.last_mut().expect("blocks") = Box::new(Stubborn(model.blocks()[0].cache(), true));
    let error = forward(&mut caches, &ids).unwrap_err();
    assert_eq!(error.message(), "enough");
    let repeats = caches[0].repeats().expect("can be taken back");
    assert_eq!(repeats.repetition(), Some(2048));
    assert_eq!(caches[0].len(), ids.len());
    // Judging: nothing is read at once.
    let recipe: KvRecipe = recipe.parse().expect("a recipe");
    let cached = ThroughCache::new(&model, &recipe).expect("caches");
    let few = Passages::default().with_count(2).with_length(10);
    let error = recall(&cached, few, &|_, _| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("prefix = 0"), "{error}");
}
