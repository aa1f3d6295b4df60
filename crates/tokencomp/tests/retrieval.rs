//! Sentences and words by what the heads of a model look at.

use std::ops::Range;

use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::{Error, Result};
use tensorpress_tokencomp::PromptModels;
use tensorpress_tokencomp::text::{
    AnswerWords, Asking, Attends, Attention, Head, Known, PromptRecipe, QuestionAttention,
    Relevance, Retrieval, Squeeze, TokenCount, WordScore, retrieval_heads,
};

/// Tokens are words.
#[derive(Debug)]
struct Words;

impl TokenCount for Words {
    fn count(&self, text: &str) -> Result<usize> {
        Ok(text.split_whitespace().count())
    }
}

fn tokens(text: &str) -> Vec<Range<usize>> {
    let at = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
    text.split_whitespace().map(|word| at(word)..at(word) + word.len()).collect()
}

/// Two layers of three heads. Head 1.2 looks at the words that come after `answer:`, head 0.1 at those of the question; the
/// others at the words of six letters.
#[derive(Debug)]
struct Reader {
    reads: usize,
}

fn weight(head: Head, before: Option<&str>, word: &str, question: &str) -> f32 {
    let looks = match head {
        (1, 2) => before == Some("answer:"),
        (0, 1) => question.split_whitespace().any(|asked| asked == word),
        _ => word.len() == 6,
    };
    if looks { 0.3 } else { 0.002 * word.len() as f32 }
}

impl Attends for Reader {
    fn reads(&self) -> usize {
        self.reads
    }

    fn length(&self, text: &str) -> Result<usize> {
        Words.count(text)
    }

    fn attention(&self, asking: Asking<'_>, heads: &[Head]) -> Result<Attention> {
        let parts = [asking.before, asking.context, asking.between, asking.question, asking.after];
        let all: usize = parts.iter().map(|part| Words.count(part).unwrap()).sum();
        assert!(all + asking.answer <= self.reads, "{all} tokens of {}", self.reads);
        if let Some(bad) = heads.iter().find(|head| head.0 > 1 || head.1 > 2) {
            return Err(Error::invalid(format!("head {bad:?}")));
        }
        let found = tokens(asking.context);
        let words: Vec<&str> = found.iter().map(|at| &asking.context[at.clone()]).collect();
        let of = |(head, token): (usize, usize)| {
            let before = token.checked_sub(1).map(|at| words[at]);
            weight(heads[head], before, words[token], asking.question)
        };
        let seen = Array2::from_shape_fn((heads.len(), words.len()), of);
        Ok(Attention { tokens: found, question: seen.clone(), answer: seen * 0.5 })
    }
}

const TEXT: &str = "The mill stands by the river. Its wheel turns all the day. They say answer: Lyon made the thing. \
                    The miller keeps his bees there. A cat sleeps upon the sacks.";
const QUESTION: &str = "Where was the wheel cast";

fn how() -> Retrieval {
    let mut how = Retrieval::default();
    (how.asking, how.answering) = (vec![(0, 1)], vec![(1, 2), (0, 1)]);
    how
}

fn sentences(text: &str) -> Vec<&str> {
    text.split_inclusive('.').map(str::trim).filter(|s| !s.is_empty()).collect()
}

/// z(ln(1e-4 + q)) + z(ln(1e-4 + a)), from the definition.
fn slow(passages: &[&str], how: &Retrieval) -> Vec<f64> {
    let mass = |heads: &[Head], passage: &str, first: Option<&str>, scale: f64| {
        let words: Vec<&str> = passage.split_whitespace().collect();
        let mut sum = 0.0;
        for (at, word) in words.iter().enumerate() {
            let before = if at == 0 { first } else { Some(words[at - 1]) };
            for head in heads {
                sum +=
                    scale * f64::from(weight(*head, before, word, QUESTION)) / heads.len() as f64;
            }
        }
        sum
    };
    let mut scores = vec![0.0; passages.len()];
    for (heads, scale) in [(&how.asking, 1.0), (&how.answering, 0.5)] {
        let logs: Vec<f64> = (0..passages.len())
            .map(|p| {
                let last = p.checked_sub(1).and_then(|p| passages[p].split_whitespace().last());
                (1e-4 + mass(heads, passages[p], last, scale)).ln()
            })
            .collect();
        let n = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / n;
        let deviation = (logs.iter().map(|l| (l - mean) * (l - mean)).sum::<f64>() / n).sqrt();
        scores.iter_mut().zip(&logs).for_each(|(score, log)| *score += (log - mean) / deviation);
    }
    scores
}

#[test]
fn scores_are_those_of_the_definition() {
    let reader = Reader { reads: 1000 };
    let passages = sentences(TEXT);
    let found = QuestionAttention::new(&reader, how()).unwrap();
    let found = found.relevance(QUESTION, &passages).unwrap();
    for (found, exact) in found.iter().zip(slow(&passages, &how())) {
        assert!((f64::from(*found) - exact).abs() < 1e-4, "{found} {exact}");
    }
    // The wheel is asked about, and Lyon is said; heads that look elsewhere find neither.
    let best = |scores: &[f32]| (0..5).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap();
    let heads = |asking: &[Head], answering: &[Head]| {
        let mut how = how();
        (how.asking, how.answering) = (asking.to_vec(), answering.to_vec());
        let found = QuestionAttention::new(&reader, how).unwrap();
        best(&found.relevance(QUESTION, &passages).unwrap())
    };
    assert_eq!(heads(&[], &[(1, 2)]), 2);
    assert_eq!(heads(&[(0, 1)], &[]), 1);
    assert!(![1, 2].contains(&heads(&[(0, 0)], &[(1, 1)])));
    let (mut none, mut blind) = (how(), how());
    (none.asking, none.answering) = (vec![], vec![]);
    blind.window = 0;
    assert!(QuestionAttention::new(&reader, none).is_err());
    assert!(QuestionAttention::new(&reader, blind).is_err());
    assert!(
        QuestionAttention::new(&reader, how())
            .unwrap()
            .relevance(QUESTION, &[])
            .unwrap()
            .is_empty()
    );
}

#[test]
fn long_texts_are_read_in_windows() {
    // A reader that panics beyond its memory: the text takes several windows.
    let reader = Reader { reads: 100 };
    let text = TEXT.repeat(20);
    let passages = sentences(&text);
    let found = QuestionAttention::new(&reader, how()).unwrap();
    let scores = found.relevance(QUESTION, &passages).unwrap();
    assert_eq!(scores.len(), 100);
    assert!(scores.iter().all(|score| score.is_finite()));
    // Sentences that are the same get about the same; what precedes the first of a window differs.
    for (at, score) in scores.iter().enumerate() {
        assert!((score - scores[at % 5]).abs() < 0.05, "{at}: {score} {}", scores[at % 5]);
    }
}

#[test]
fn heads_are_found_by_known_answers() {
    let reader = Reader { reads: 1000 };
    let passages = sentences(TEXT);
    let known = [Known { question: QUESTION, passages: &passages, answer: 2 }];
    let [_, answering] = retrieval_heads(&reader, &known, (2, 3), 2).unwrap();
    assert_eq!(answering[0], (1, 2));
    let known = [Known { question: QUESTION, passages: &passages, answer: 1 }];
    let [asking, _] = retrieval_heads(&reader, &known, (2, 3), 1).unwrap();
    assert_eq!(asking, [(0, 1)]);
    assert!(retrieval_heads(&reader, &[], (2, 3), 1).is_err());
    let known = [Known { question: QUESTION, passages: &passages, answer: 5 }];
    assert!(retrieval_heads(&reader, &known, (2, 3), 1).is_err());
}

#[test]
fn words_of_the_answer_stay() {
    let reader = Reader { reads: 1000 };
    let words = AnswerWords::new(&reader, how()).unwrap();
    let ranges = tokens(TEXT);
    let scores = words.score_asked(Some(QUESTION), TEXT, &ranges).unwrap();
    let of = |word: &str| scores[ranges.iter().position(|at| &TEXT[at.clone()] == word).unwrap()];
    let best = scores.iter().copied().fold(0.0, f32::max);
    assert_eq!(of("Lyon"), best);
    // A name where one is asked for, and no other word, gains 2; words of the question lose.
    let plain = words.score_asked(Some("Why was the wheel cast"), TEXT, &ranges).unwrap();
    let gains = scores.iter().zip(&plain).filter(|(a, b)| **a - **b > 1.9).count();
    assert_eq!(gains, 1);
    assert!(words.score(TEXT, &ranges).is_err());

    let relevance = QuestionAttention::new(&reader, how()).unwrap();
    let whole = Squeeze::new(&Words).with_relevance(&relevance);
    let core = whole.clone().with_words(&words).with_core(0.6).unwrap();
    let whole = whole.squeeze(TEXT, Some(QUESTION), 7).unwrap();
    let core = core.squeeze(TEXT, Some(QUESTION), 7).unwrap();
    assert!(core.tokens <= 7 && whole.tokens <= 7);
    // Cores leave room for the next sentence, which has the answer.
    assert!(core.text.contains("Lyon") && !whole.text.contains("Lyon"), "{core:?} {whole:?}");
}

/// The core of one sentence against all of its runs of words.
#[test]
fn cores_are_the_shortest_runs() {
    #[derive(Debug)]
    struct Given(Vec<f32>);
    impl WordScore for Given {
        fn score(&self, _: &str, words: &[Range<usize>]) -> Result<Vec<f32>> {
            Ok(self.0[..words.len()].to_vec())
        }
    }
    let text = "a bb ccc dd e ffff g hh iii j";
    let words = tokens(text);
    let mut seed = 7u32;
    for round in 0..200 {
        let mut draw = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as f32 / 256.0 - 0.1
        };
        let given = Given(words.iter().map(|_| draw()).collect());
        let share = [0.3, 0.5, 0.8, 0.95][round % 4];
        let squeeze = Squeeze::new(&Words).with_words(&given).with_core(share).unwrap();
        let found = squeeze.squeeze(text, None, 9).unwrap().text;
        let sum =
            |run: Range<usize>| given.0[run].iter().map(|s| f64::from(s.max(0.0))).sum::<f64>();
        let goal = share * sum(0..10);
        let runs = (0..10).flat_map(|from| (from + 1..=10).map(move |to| from..to));
        let least =
            runs.filter(|run| sum(run.clone()) >= goal - 1e-9).map(|run| run.len()).min().unwrap();
        if least < 10 {
            assert_eq!(found.split_whitespace().count(), least, "{round}: {found}");
            assert!(text.contains(&found), "neighbours: {found}");
        }
    }
    assert!(
        Squeeze::new(&Words).with_core(0.0).is_err()
            && Squeeze::new(&Words).with_core(f64::NAN).is_err()
    );
}

#[test]
fn recipes_say_which_heads() {
    let reader = Reader { reads: 1000 };
    let models = PromptModels::default().with_attends(&reader);
    let line = "retrieval(asking=\"0.1\", answering=\"1.2+0.1\") | answer_words(answering=\"1.2\") | fill(core=0.6)";
    let recipe: PromptRecipe = line.parse().unwrap();
    assert_eq!(recipe.to_string().parse::<PromptRecipe>().unwrap(), recipe);
    let asked = (TEXT, Some(QUESTION));
    let short = recipe.squeeze((&Words, &models), &[], asked, 7).unwrap();
    assert!(short.text.contains("Lyon") && short.tokens <= 7, "{short:?}");
    for bad in [
        "retrieval(asking=\"0\")",
        "retrieval(asking=\"x.1\")",
        "answer_words(window=0)",
        "fill(core=0)",
    ] {
        assert!(bad.parse::<PromptRecipe>().is_err(), "{bad}");
    }
    let none = recipe.squeeze((&Words, &PromptModels::default()), &[], asked, 7);
    assert!(none.unwrap_err().to_string().contains("retrieval"));
    // Heads that the model does not have.
    let recipe: PromptRecipe = "retrieval(asking=\"9.9\")".parse().unwrap();
    assert!(recipe.squeeze((&Words, &models), &[], asked, 7).is_err());
}
