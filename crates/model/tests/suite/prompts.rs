//! Prompts made shorter by the models of this crate.

use std::ops::{ControlFlow, Range};
use std::sync::Mutex;

use tensorpress_model::{
    LanguageModel, Observer, SentenceSimilarity, SharedInput, Source, Tokenizer, embedded,
};
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::{self, ArrayView2, Axis, s};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Registry, Result, Scratch, Tensor as _};
use tensorpress_tokencomp::PromptModels;
use tensorpress_tokencomp::text::{
    Asking, Attends, Attention, Bm25, Fused, Head, PromptRecipe, QuestionLikelihood, Relevance,
    Squeeze, Surprise, TokenCount, TokenLogProbs, WordScore,
};

use crate::common::open;

const FACTS: &str = include_str!("../../../tokencomp/tests/data/facts.txt");
/// Written without knowledge of the method, and unchanged since.
const BLIND: &str = include_str!("../../../tokencomp/tests/data/facts_blind.txt");
const THIRD: &str = include_str!("../../../tokencomp/tests/data/facts_third.txt");

struct Case<'a> {
    question: &'a str,
    fact: &'a str,
    answer: &'a str,
    context: String,
}

/// The contexts with their facts, planted after sentences from the first to the last.
fn cases(facts: &str) -> Vec<Case<'_>> {
    let case = |(i, text)| {
        let text: &str = text;
        let line = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).expect("a line");
        let (fact, answer, context) = (line("F: "), line("A: "), line("C: "));
        let ends: Vec<usize> = context.match_indices(". ").map(|(at, _)| at + 2).collect();
        let (before, after) = context.split_at(ends[i * 7 % ends.len()]);
        let question = text.lines().next().expect("a question");
        Case { question, fact, answer, context: format!("{before}{fact} {after}") }
    };
    facts.split("\nQ: ").skip(1).enumerate().map(case).collect()
}

/// The beginning of a text, cut between words.
fn truncate(tokenizer: &Tokenizer, text: &str, budget: usize) -> String {
    let mut short = text;
    while tokenizer.count(short).unwrap() > budget {
        short = short.trim_end().rsplit_once(char::is_whitespace).map_or("", |(before, _)| before);
    }
    short.to_owned()
}

/// Draws without regard to anything: a baseline.
#[derive(Debug)]
struct Chance(u64);

impl Relevance for Chance {
    fn relevance(&self, _: &str, passages: &[&str]) -> Result<Vec<f32>> {
        let draws = SplitMix::new(self.0);
        Ok((0..passages.len()).map(|i| (draws.at(i as u64) >> 40) as f32).collect())
    }
}

impl WordScore for Chance {
    fn score(&self, _: &str, words: &[Range<usize>]) -> Result<Vec<f32>> {
        let draws = SplitMix::new(self.0);
        Ok(words.iter().map(|w| (draws.at(w.start as u64) >> 40) as f32).collect())
    }
}

/// How many answers, and whole facts, survive at a quarter of the tokens: by method, the best first.
fn survivors(what: &str, cases: &[Case<'_>], demo: bool) -> Option<Vec<[usize; 2]>> {
    let folder = data::minilm()?;
    let source = open(&folder).unwrap();
    let (tokenizer, encoder) = (source.tokenizer().unwrap(), source.encoder().unwrap());
    let encoder = encoder.materialise().unwrap();
    let source = Source::demo(&Registry::default()).unwrap();
    let (decoder, demo_tokenizer) =
        (source.decoder().unwrap().materialise().unwrap(), source.tokenizer().unwrap());
    let model = LanguageModel::new(&decoder, &demo_tokenizer).unwrap();

    let (similarity, bm25) = (SentenceSimilarity::new(&encoder, &tokenizer), Bm25::new());
    let fused = Fused::new().with(&similarity, 1.0).with(&bm25, 0.25);
    let (likelihood, surprise) = (QuestionLikelihood::new(&model), Surprise::new(&model));
    let base = Squeeze::new(&tokenizer);
    let mut names =
        vec!["MiniLM + BM25", "truncation", "random sentences", "random words", "MiniLM", "BM25"];
    if demo {
        names.extend(["demo model, question", "demo model, no question"]);
    }
    let mut survived = vec![[0; 2]; names.len()];
    for (i, case) in cases.iter().enumerate() {
        let budget = tokenizer.count(&case.context).unwrap() / 4;
        let chance = Chance(i as u64);
        let ask = |squeeze: Squeeze<'_>| {
            let short = squeeze.squeeze(&case.context, Some(case.question), budget).unwrap();
            assert_eq!(short.tokens, tokenizer.count(&short.text).unwrap());
            assert!(short.tokens <= budget && 4 * short.tokens <= short.tokens_before);
            short.text
        };
        let words = base.clone().with_words(&chance).with_whole(0.0).unwrap();
        let mut texts = vec![
            ask(base.clone().with_relevance(&fused)),
            truncate(&tokenizer, &case.context, budget),
            ask(base.clone().with_relevance(&chance)),
            ask(words.with_coarse(9.0).unwrap()),
            ask(base.clone().with_relevance(&similarity)),
            ask(base.clone().with_relevance(&bm25)),
        ];
        if demo {
            let unasked = base.clone().with_words(&surprise);
            texts.extend([
                ask(base.clone().with_relevance(&likelihood).with_words(&surprise)),
                unasked.squeeze(&case.context, None, budget).unwrap().text,
            ]);
        }
        if !texts[0].contains(case.answer) {
            println!("lost: {}", case.question);
        }
        for (text, survived) in texts.iter().zip(&mut survived) {
            survived[0] += usize::from(text.contains(case.answer));
            survived[1] += usize::from(text.contains(case.fact));
        }
    }
    println!("{what}: {} contexts at a quarter of their tokens", cases.len());
    for (name, [answer, fact]) in names.iter().zip(&survived) {
        println!("{name:24} answer {answer:2} of {}, whole fact {fact:2}", cases.len());
    }
    Some(survived)
}

#[test]
fn facts_survive_a_question() {
    let cases = cases(FACTS);
    assert_eq!(cases.len(), 40);
    let Some(survived) = survivors("facts", &cases, true) else { return };
    let best = survived[0][0];
    assert!(10 * best >= 9 * cases.len(), "{best} answers survive");
    assert!(survived[1..4].iter().all(|[answer, _]| *answer < best));
}

#[test]
fn facts_of_a_stranger_survive_a_question() {
    let cases = cases(BLIND);
    assert_eq!(cases.len(), 80);
    let Some(survived) = survivors("blind facts", &cases, false) else { return };
    let best = survived[0][0];
    assert!(survived[1..4].iter().all(|[answer, _]| 2 * *answer < best), "{survived:?}");
}

/// Reads each text with its question once, whoever asks, and looks at all of these heads.
#[derive(Debug)]
struct Once<'a> {
    model: &'a LanguageModel<'a>,
    last: Mutex<Option<(String, Attention)>>,
}

const HEADS: [Head; 7] = [(15, 6), (21, 8), (22, 4), (23, 1), (23, 2), (23, 4), (23, 7)];

impl Attends for Once<'_> {
    fn reads(&self) -> usize {
        self.model.reads()
    }

    fn length(&self, text: &str) -> Result<usize> {
        self.model.length(text)
    }

    fn attention(&self, asking: Asking<'_>, heads: &[Head]) -> Result<Attention> {
        let mut last = self.last.lock().unwrap();
        let key = format!("{asking:?}");
        if last.as_ref().is_none_or(|(known, _)| *known != key) {
            *last = Some((key, self.model.attention(asking, &HEADS)?));
        }
        let (_, seen) = last.as_ref().unwrap();
        let rows: Vec<usize> =
            heads.iter().map(|h| HEADS.iter().position(|other| other == h).unwrap()).collect();
        Ok(Attention {
            tokens: seen.tokens.clone(),
            question: seen.question.select(Axis(0), &rows),
            answer: seen.answer.select(Axis(0), &rows),
        })
    }
}

/// By recipe and by baseline: how many answers, and whole facts, survive at a quarter of MiniLM's tokens. Of the set named by
/// TENSORPRESS_FACTS, or else of the one that was written after the method was frozen. Minutes, with SmolLM2-135M-Instruct.
#[test]
fn facts_survive_by_retrieval_heads() {
    let Some(minilm) = data::minilm() else { return };
    let Some(folder) = std::env::var_os("TENSORPRESS_SMOLLM2") else {
        println!("skipped: TENSORPRESS_SMOLLM2 names no folder of SmolLM2-135M-Instruct");
        return;
    };
    let facts = std::env::var_os("TENSORPRESS_FACTS").map(std::fs::read_to_string);
    let facts = facts.map_or(THIRD.to_owned(), |text| text.expect("a file of facts"));
    let cases = cases(&facts);
    let source = open(&folder).unwrap();
    let (decoder, own) =
        (source.decoder().unwrap().materialise().unwrap(), source.tokenizer().unwrap());
    let model = LanguageModel::new(&decoder, &own).unwrap();
    let once = Once { model: &model, last: Mutex::default() };
    let source = open(&minilm).unwrap();
    let (tokenizer, encoder) = (source.tokenizer().unwrap(), source.encoder().unwrap());
    let encoder = encoder.materialise().unwrap();
    let similarity = SentenceSimilarity::new(&encoder, &tokenizer);
    let models = PromptModels::default()
        .with_language(&model)
        .with_attends(&once)
        .with_similarity(&similarity);
    let recipes = [
        RETRIEVAL,
        "retrieval | answer_words | fill(core=0.8)",
        "retrieval | similarity(weight=0.3)",
        "retrieval",
        "similarity",
        "bm25",
    ];
    let names = recipes.iter().chain(&["truncation", "random sentences"]);
    let mut survived = vec![[0; 2]; recipes.len() + 2];
    for (i, case) in cases.iter().enumerate() {
        let budget = tokenizer.count(&case.context).unwrap() / 4;
        let mut texts: Vec<String> = Vec::new();
        for recipe in recipes {
            let recipe: PromptRecipe = recipe.parse().unwrap();
            let asked = (case.context.as_str(), Some(case.question));
            let short = recipe.squeeze((&tokenizer, &models), &[], asked, budget).unwrap();
            assert!(
                short.tokens <= budget && short.tokens == tokenizer.count(&short.text).unwrap()
            );
            texts.push(short.text);
        }
        texts.push(truncate(&tokenizer, &case.context, budget));
        let chance = Chance(i as u64);
        let random = Squeeze::new(&tokenizer).with_relevance(&chance);
        texts.push(random.squeeze(&case.context, Some(case.question), budget).unwrap().text);
        for (text, survived) in texts.iter().zip(&mut survived) {
            survived[0] += usize::from(text.contains(case.answer));
            survived[1] += usize::from(text.contains(case.fact));
        }
        if i % 10 == 9 {
            println!("{} contexts: {survived:?}", i + 1);
        }
    }
    for (name, [answer, fact]) in names.zip(&survived) {
        println!("answer {answer:2} of {}, whole fact {fact:2}: {name}", cases.len());
    }
    let best = survived[0][0];
    let baselines = survived[4..].iter().map(|[answer, _]| *answer).max();
    assert!(Some(best) > baselines, "{survived:?}");
    assert!(10 * best >= 8 * cases.len(), "{survived:?}");
}

/// What was frozen before the third set was written.
const RETRIEVAL: &str = "retrieval | similarity(weight=0.3) | answer_words | fill(core=0.8)";

/// The attention of the demo model's heads, from its weights, in f64.
#[test]
fn attention_is_the_models() {
    let source = Source::demo(&Registry::default()).unwrap();
    let (decoder, tokenizer) =
        (source.decoder().unwrap().materialise().unwrap(), source.tokenizer().unwrap());
    let model = LanguageModel::new(&decoder, &tokenizer).unwrap();
    let asking = Asking {
        before: "One day,",
        context: "Tom got a big red ball. Sue has a small blue car.",
        between: " Mom said:",
        question: " who has a car",
        after: " now?",
        answer: 5,
    };
    let blocks = decoder.blocks().len();
    let heads: Vec<Head> = (0..blocks).flat_map(|layer| [(layer, 0), (layer, 3)]).collect();
    let seen = model.attention(asking, &heads).unwrap();
    assert_eq!(seen.tokens.last().unwrap().end, asking.context.len());
    // The sequence once more, with what the model said.
    let mut ids = tokenizer.encode(asking.before).unwrap();
    let first = ids.len();
    ids.extend(tokenizer.encode_plain(asking.context).unwrap());
    let end = ids.len();
    let behind = [asking.between, asking.question, asking.after].concat();
    let behind = tokenizer.encode_with_offsets(&behind).unwrap();
    let bytes = asking.between.len()..asking.between.len() + asking.question.len();
    let asked: Vec<usize> = (0..behind.len())
        .filter(|at| behind[*at].1.start >= bytes.start && behind[*at].1.end <= bytes.end)
        .map(|at| end + at)
        .collect();
    assert!(!asked.is_empty());
    ids.extend(behind.iter().map(|(id, _)| *id));
    let prompt = ids.len();
    for _ in 0..asking.answer {
        let logits = crate::common::logits(&decoder, &ids).unwrap();
        let last = logits.row(logits.nrows() - 1);
        let next = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        ids.push(next as u32);
    }
    let said: Vec<usize> = (prompt..ids.len()).collect();
    let (config, mut scratch) = (decoder.config(), Scratch::new(Par::Seq));
    let mut hidden = decoder.embedding().embed(&ids, &mut scratch).unwrap();
    for block in decoder.blocks() {
        let mut reads = First(None);
        block
            .forward_sequences(hidden.view_mut(), &[ids.len()], Some(&mut reads), &mut scratch)
            .unwrap();
        let x = reads.0.unwrap().mapv(f64::from);
        let weight = |part: &str| {
            let name = format!("model.layers.{}.self_attn.{part}_proj.weight", block.index());
            source.checkpoint().tensor(&name).unwrap().to_matrix().unwrap().mapv(f64::from)
        };
        let (q, k) = (x.dot(&weight("q").t()), x.dot(&weight("k").t()));
        let (heads_all, kv) = (config.heads, config.kv_heads);
        let dim = q.ncols() / heads_all;
        let turned = |row: ndarray::ArrayView1<'_, f64>, at: usize| -> Vec<f64> {
            let half = dim / 2;
            (0..dim)
                .map(|c| {
                    let angle = at as f64 * 10000f64.powf(-((c % half) as f64) / half as f64);
                    let other = if c < half { -row[c + half] } else { row[c - half] };
                    row[c] * angle.cos() + other * angle.sin()
                })
                .collect()
        };
        for (at, (layer, head)) in
            heads.iter().enumerate().filter(|(_, (l, _))| *l == block.index())
        {
            let _ = layer;
            for (rows, found) in [(&asked, &seen.question), (&said, &seen.answer)] {
                let mut sums = vec![0.0; end - first];
                for row in rows {
                    let query = turned(q.slice(s![*row, head * dim..(head + 1) * dim]), *row);
                    let own = head / (heads_all / kv) * dim;
                    let score = |key: usize| {
                        let key = turned(k.slice(s![key, own..own + dim]), key);
                        let dot: f64 = key.iter().zip(&query).map(|(a, b)| a * b).sum();
                        (dot / (dim as f64).sqrt()).exp()
                    };
                    let scores: Vec<f64> = (0..=*row).map(score).collect();
                    let all: f64 = scores.iter().sum();
                    sums.iter_mut().zip(&scores[first..]).for_each(|(sum, s)| *sum += s / all);
                }
                for (token, sum) in sums.iter().enumerate() {
                    let exact = sum / rows.len() as f64;
                    let found = f64::from(found[[at, token]]);
                    assert!(
                        (found - exact).abs() < 1e-4,
                        "{layer}.{head} {token}: {found} {exact}"
                    );
                }
            }
        }
    }
    assert!(model.attention(asking, &[(blocks, 0)]).is_err());
}

/// Keeps the first input of a block that is seen.
struct First(Option<ndarray::Array2<f32>>);

impl Observer for First {
    fn input(&mut self, _: SharedInput, x: ArrayView2<'_, f32>) -> Result<ControlFlow<()>> {
        self.0.get_or_insert_with(|| x.to_owned());
        Ok(ControlFlow::Continue(()))
    }
}

#[test]
fn log_probabilities_are_the_models() {
    let source = Source::demo(&Registry::default()).unwrap();
    let (decoder, tokenizer) =
        (source.decoder().unwrap().materialise().unwrap(), source.tokenizer().unwrap());
    let model = LanguageModel::new(&decoder, &tokenizer).unwrap();
    let text = &embedded::CALIBRATION[..4000];
    let tokens = model.log_probs("", text).unwrap();
    // Windows overlap by half, so that each token sees at least 256 before it: none is far from the exact value.
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(tokens.len() + 1, ids.len());
    assert!(ids.len() > 2 * decoder.config().context, "several windows");
    let context = decoder.config().context;
    for (row, (bytes, log_prob)) in tokens.iter().enumerate().step_by(97) {
        assert!(bytes.end <= text.len() && bytes.start <= bytes.end);
        let exact = |from: usize| {
            let logits = decoder.hidden(&ids[from..=row], &mut Scratch::new(Par::Seq)).unwrap();
            let logits = decoder.head().logits(logits.view(), &mut Scratch::new(Par::Seq)).unwrap();
            let logits = logits.row(row - from);
            let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
            f64::from(logits[ids[row + 1] as usize]) - sum.ln()
        };
        if row < context / 2 {
            assert!((exact(0) - f64::from(*log_prob)).abs() < 1e-3, "{row}");
        }
        assert!(log_prob.is_finite() && *log_prob < 0.0);
    }
    // Context matters, and one that is too long is forgotten from its beginning.
    let mean = |context: &str| {
        let tokens = model.log_probs(context, "They were happy with their big red ball.").unwrap();
        tokens.iter().map(|(_, p)| p).sum::<f32>() / tokens.len() as f32
    };
    assert!(mean("Tom and Sue got a big red ball.") > mean(""));
    assert!(mean(&(text.repeat(3) + " Tom and Sue got a big red ball.")).is_finite());
    assert!(model.log_probs("context", "").unwrap().is_empty());
}
