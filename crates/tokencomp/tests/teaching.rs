//! What text compressors learn from, reuse and are stopped by: each against a slow or hand-made reference.

use std::cell::Cell;
use std::collections::HashSet;

use tensorpress_tensor::{Error, Result};
use tensorpress_tokencomp::PromptModels;
use tensorpress_tokencomp::text::{
    Annotator, Exit, Piece, PromptRecipe, Relevance, SegmentCache, SegmentCompressor, Squeeze,
    TokenCount, TokenLogProbs, TrimR, Usefulness, Verdict, Verifier, contrast, trustworthy,
};

#[derive(Debug)]
struct Words;

impl TokenCount for Words {
    fn count(&self, text: &str) -> Result<usize> {
        Ok(text.split_whitespace().count())
    }
}

/// Words that the context has are probable; `Yes` is where it has the answer before the sentence ends.
#[derive(Debug)]
struct Repeats;

impl TokenLogProbs for Repeats {
    fn log_probs(&self, context: &str, text: &str) -> Result<Vec<Piece>> {
        let at = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
        let seen: HashSet<&str> = context.split_whitespace().collect();
        let useful = context.split("Sentence:").nth(1).is_some_and(|s| s.contains("Lyon"));
        let one = |word: &str| {
            let p = match word {
                "Yes" if useful => 0.8,
                "Yes" => 0.1,
                "No" => 0.2,
                _ if seen.contains(word) => 0.5,
                _ => 0.01,
            };
            (at(word)..at(word) + word.len(), f32::ln(p))
        };
        Ok(text.split_whitespace().map(one).collect())
    }
}

#[test]
fn contrasts_are_those_of_the_likelihood() {
    let sentences =
        ["It was cast in Lyon long ago.", "The mill stands.", "Lyon cast it.", "in Lyon"];
    let found = contrast(&Repeats, ("Where?", "in Lyon"), &sentences, (0.5, 1)).unwrap();
    // `in` and `Lyon`: both are seen in the first and last, one or none in the others.
    let exact = [0.25f64, 1e-4, 0.005, 0.25].map(f64::ln);
    for (found, exact) in found.scores.iter().zip(exact) {
        assert!((found - exact).abs() < 1e-5, "{found} {exact}");
    }
    // The first of the best; what ties with it is no negative, and the hardest one comes first.
    assert_eq!((found.positive, &found.negatives[..]), (0, &[2][..]));
    let all = contrast(&Repeats, ("Where?", "in Lyon"), &sentences, (0.0, 9)).unwrap();
    assert_eq!(all.negatives, [2, 1]);
    assert!(contrast(&Repeats, ("", ""), &[], (0.0, 1)).is_err());
    assert!(contrast(&Repeats, ("", ""), &sentences, (f64::NAN, 1)).is_err());
}

/// Useful is a sentence whose pronoun the document before it explains.
#[derive(Debug)]
struct Looks;

impl Usefulness for Looks {
    fn yes(&self, question: &str, document: &str, sentence: &str) -> Result<f32> {
        let subject = question.split_whitespace().last().unwrap();
        let at = document.find(sentence).expect("the document has its sentences");
        let explained = sentence.contains("It") && document[..at].contains(subject);
        Ok(if explained { 0.9 } else { 0.2 })
    }
}

#[test]
fn exit_reads_the_document_and_keeps_what_helps() {
    let text = "It rained. The wheel is old. It was cast in Lyon. Bees hum.";
    let exit = Exit::new(Looks);
    let squeeze = Squeeze::new(&Words).with_relevance(&exit).with_threshold(0.5).unwrap();
    // Without the document, `It rained.` would help as much.
    let short = squeeze.squeeze(text, Some("Where was the wheel"), 100).unwrap();
    assert_eq!(short.text, "It was cast in Lyon.");
    // None helps: nothing is left, whatever the budget (RECOMP's empty string too).
    assert_eq!(squeeze.squeeze(text, Some("Who made the cider"), 100).unwrap().text, "");
    // Without a threshold, or a question, a text that fits stays.
    assert_eq!(squeeze.squeeze(text, None, 100).unwrap().text, text);
    let all = Squeeze::new(&Words).with_relevance(&exit);
    assert_eq!(all.squeeze(text, Some("Where was the wheel"), 100).unwrap().text, text);
    // The budget counts beside the threshold.
    let low = all.clone().with_threshold(0.1).unwrap();
    assert_eq!(
        low.squeeze(text, Some("Where was the wheel"), 7).unwrap().text,
        "It rained. It was cast in Lyon."
    );
    assert!(all.with_threshold(f32::NAN).is_err());

    let models = PromptModels::default().with_language(&Repeats);
    let recipe: PromptRecipe = "exit | fill(threshold=0.5)".parse().unwrap();
    let asked = ("The wheel is old. It was cast in Lyon.", Some("Where?"));
    let short = recipe.squeeze((&Words, &models), &[], asked, 100).unwrap();
    assert_eq!(short.text, "It was cast in Lyon.");
    // p(yes) / (p(yes) + p(no)).
    #[derive(Debug)]
    struct Bad;
    impl Usefulness for Bad {
        fn yes(&self, _: &str, _: &str, _: &str) -> Result<f32> {
            Ok(1.5)
        }
    }
    let exact = Exit::new(tensorpress_tokencomp::text::Asked::new(&Repeats));
    let found = exact.relevance("Where?", &["Old.", "In Lyon."]).unwrap();
    assert!((found[0] - 1.0 / 3.0).abs() < 1e-5 && (found[1] - 0.8).abs() < 1e-5, "{found:?}");
    assert!(Exit::new(Bad).relevance("", &["a"]).is_err());
}

/// The sum of a segment, as one token; counts its runs.
#[derive(Debug, Default)]
struct Sums(Cell<usize>);

impl SegmentCompressor for Sums {
    type Output = u64;

    fn compress(&self, segment: &[u32]) -> Result<u64> {
        if segment.contains(&u32::MAX) {
            return Err(Error::invalid("no such token"));
        }
        self.0.set(self.0.get() + 1);
        Ok(segment.iter().map(|t| u64::from(*t)).sum())
    }

    fn tokens(&self, output: &u64) -> usize {
        1 + (*output % 2) as usize
    }
}

#[test]
fn segments_are_compressed_once() {
    let mut cache = SegmentCache::new(Sums::default(), 4, 100).unwrap();
    let mut seen: HashSet<Vec<u32>> = HashSet::new();
    let (mut seed, mut runs, mut all) = (5u32, 0, [0; 5]);
    for _ in 0..50 {
        let mut draw = |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % below
        };
        let context: Vec<u32> = (0..draw(20)).map(|_| draw(2)).collect();
        let (outputs, cost) = cache.compress(&context).unwrap();
        let mut exact = [0; 5];
        let mut joined = Vec::new();
        for segment in context.chunks(4) {
            let sum = segment.iter().map(|t| u64::from(*t)).sum::<u64>();
            joined.push(sum);
            let new = seen.insert(segment.to_vec());
            runs += usize::from(new);
            exact[0] += 1;
            exact[1] += usize::from(!new);
            exact[2] += segment.len();
            exact[3] += 1 + (sum % 2) as usize;
            exact[4] += if new { segment.len() } else { 0 };
        }
        assert_eq!(outputs, joined);
        let of = |c: tensorpress_tokencomp::text::SegmentUse| {
            [c.segments, c.hits, c.tokens_before, c.tokens_after, c.tokens_read]
        };
        assert_eq!(of(cost), exact);
        all.iter_mut().zip(exact).for_each(|(all, exact)| *all += exact);
        assert_eq!(of(cache.total()), all);
        assert_eq!(cache.remembered(), seen.len());
    }
    assert!(runs < 31 && all[1] > 50, "{runs} runs, {} hits", all[1]);
    // What was used longest ago goes first.
    let mut small = SegmentCache::new(Sums::default(), 1, 2).unwrap();
    let hits =
        |small: &mut SegmentCache<Sums>, context: &[u32]| small.compress(context).unwrap().1.hits;
    assert_eq!(hits(&mut small, &[1, 2, 1, 3]), 1);
    assert_eq!((hits(&mut small, &[1]), hits(&mut small, &[2]), small.remembered()), (1, 0, 2));
    let mut none = SegmentCache::new(Sums::default(), 3, 0).unwrap();
    assert_eq!(hits(&mut none, &[1, 1, 1, 1, 1, 1]), 0);
    assert!(
        none.compress(&[u32::MAX]).is_err() && SegmentCache::new(Sums::default(), 0, 1).is_err()
    );
    assert_eq!(none.segments(7), [0..3, 3..6, 6..7]);
}

#[test]
fn labels_find_the_words_again() {
    let split = |text: &'static str| text.split(' ').collect::<Vec<&str>>();
    let original =
        split("The mill by the river was grinding corn and the miller slept by the mill");
    let kept = |compressed: &'static str, annotator: Annotator| {
        let found = annotator.annotate(&original, &split(compressed));
        let words = original.iter().zip(&found.labels).filter(|(_, kept)| **kept);
        (words.map(|(word, _)| *word).collect::<Vec<_>>().join(" "), found)
    };
    let annotator = Annotator::default();
    // `grind` is like `grinding` by its beginning (5 of 8 letters are too few, 6 of 8 would do); case does not count.
    let (words, found) = kept("the mill grinding corn miller slept mill", annotator);
    assert_eq!(words, "The mill grinding corn miller slept mill");
    assert_eq!((found.variation_rate, found.alignment_gap), (0.0, 0.0));
    let (words, found) = kept("mill grindin corn", annotator);
    assert_eq!(words, "mill grinding corn");
    assert!((found.variation_rate - 1.0 / 3.0).abs() < 1e-12);
    // Two hits, three labels, of fifteen words.
    assert!((found.alignment_gap + 1.0 / 15.0).abs() < 1e-12);
    let (words, _) = kept("mill grindin corn", annotator.with_fuzzy(1.0).unwrap());
    assert_eq!(words, "mill corn");
    // The second `mill` is out of the window of the first: no label, and a gap.
    let (words, found) = kept("The mill mill", annotator.with_window(4).unwrap());
    assert_eq!(words, "The mill");
    assert!((found.alignment_gap - 1.0 / 15.0).abs() < 1e-12);
    // The window goes along: each word is near the one before.
    let (words, _) =
        kept("mill river grinding and miller by mill", annotator.with_window(6).unwrap());
    assert_eq!(words, "mill river grinding and miller by mill");
    // What was found before is nearer to the left.
    let (words, _) = kept("river mill", annotator.with_window(8).unwrap());
    assert_eq!(words, "mill river");
    assert!(annotator.with_window(1).is_err() && annotator.with_fuzzy(0.0).is_err());

    // The worst by variation, then of the rest the worst by gap.
    let of = |compressed: &'static str| {
        annotator.with_window(4).unwrap().annotate(&original, &split(compressed))
    };
    let four = [of("the mill"), of("a castle"), of("The mill mill mill"), of("corn slept")];
    assert_eq!(trustworthy(&four, 0.25, 0.67).unwrap(), [true, false, false, false]);
    assert_eq!(trustworthy(&four, 0.0, 0.0).unwrap(), [true; 4]);
    assert!(trustworthy(&[], 0.5, 0.5).unwrap().is_empty());
    assert!(trustworthy(&four, 1.5, 0.0).is_err());
}

/// Thoughts agree that end in the same word.
#[derive(Debug, Default)]
struct LastWord(Cell<usize>);

impl Verifier for LastWord {
    fn agree(&self, _: &str, before: &str, thought: &str) -> Result<bool> {
        self.0.set(self.0.get() + 1);
        let last = |text: &str| text.split_whitespace().last().map(str::to_owned);
        Ok(last(before) == last(thought))
    }
}

#[test]
fn reasoning_ends_when_thoughts_agree() {
    let mut rules = TrimR::default();
    (rules.shortest, rules.budget) = (3, 60);
    let text = "So two and two is 4. Wait, I count again and get 4. But butter is not it. Hmm, by the table it is 4. \
                Wait, once more it is 4. Actually I go on.";
    // Split before a sentence that begins with such a word, never within one; `butter` is none.
    let thoughts: Vec<&str> = rules.thoughts(text).into_iter().map(|at| &text[at]).collect();
    assert_eq!(thoughts.len(), 6);
    assert_eq!(thoughts[2], "But butter is not it. ");
    assert_eq!(thoughts.concat(), text);
    // By letters and by words, the verdict falls at the same place: it. and 4. disagree in between.
    for agreements in 1..=2 {
        rules.agreements = agreements;
        // The slow way: all thoughts that are ended, each with the one before.
        let last = |text: &str| text.split_whitespace().last().unwrap().to_owned();
        let (mut agreed, mut ends) = (0, None);
        for at in 1..thoughts.len() - 1 {
            agreed = if last(thoughts[at]) == last(thoughts[at - 1]) { agreed + 1 } else { 0 };
            if agreed >= agreements && ends.is_none() {
                ends = Some(at);
            }
        }
        let verifier = LastWord::default();
        let mut watched = rules.watch("2 + 2?", &verifier).unwrap();
        let mut verdict = Verdict::Continue;
        for piece in text.split_inclusive(' ') {
            verdict = watched.push(piece).unwrap();
            if verdict != Verdict::Continue {
                break;
            }
        }
        assert_eq!(verdict == Verdict::Stop, ends.is_some(), "{agreements}");
        if let Some(at) = ends {
            let said: usize = thoughts[..=at].iter().map(|t| t.len()).sum();
            assert!(watched.text().len() >= said && watched.text().len() < said + 12);
            assert_eq!(verifier.0.get(), at);
            assert_eq!(watched.push("more").unwrap(), Verdict::Stop, "the verdict stays");
        }
    }
    // Without agreement the budget ends it.
    (rules.agreements, rules.budget) = (9, 20);
    let verifier = LastWord::default();
    let mut watched = rules.watch("", &verifier).unwrap();
    assert_eq!(watched.push(text).unwrap(), Verdict::Conclude);
    // Loops, of whatever period, found by comparing all runs.
    let rules = TrimR::default();
    for period in 1..6 {
        let run: Vec<String> = (0..period).map(|i| format!("w{i}")).collect();
        let run = run.join(" ");
        let three = format!("Begin here: {run} {run} {run}");
        assert_eq!(rules.looped(&three), None);
        let four = format!("{three} {run}");
        let cut = rules.looped(&four).unwrap();
        assert_eq!(&four[..cut], format!("Begin here: {run}"));
        let six = format!("{four} {run} {run}");
        assert_eq!(rules.looped(&six), Some(cut));
        let mut watched = rules.watch("", &verifier).unwrap();
        assert_eq!(watched.push(&six).unwrap(), Verdict::Loop(cut));
    }
    let mut bad = TrimR::default();
    bad.repeats = 1;
    assert!(bad.watch("", &verifier).is_err());
}
