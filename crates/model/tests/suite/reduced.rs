//! Encoders that carry fewer tokens.

use tensorpress_model::text::Corpus;
use tensorpress_model::{Encoder, Reduction, Tokenizer};
use tensorpress_tensor::Scratch;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::Axis;
use tensorpress_tensor::testing::data;
use tensorpress_tokencomp::{
    AttentionTopK, ConceptChunk, DiffRate, DivPrune, GeometryMerge, Pooling, QueryPooling,
    RandomKeep, Schedule, ToMe, TokenCorr, TokenMap, TokenReduce,
};

use crate::common::open;

fn minilm() -> Option<(Encoder, Tokenizer)> {
    let source = open(&data::minilm()?).unwrap();
    Some((source.encoder().unwrap().materialise().unwrap(), source.tokenizer().unwrap()))
}

/// Texts of 128 tokens, class and separator token included.
fn windows(tokenizer: &Tokenizer, count: usize) -> Option<Vec<Vec<u32>>> {
    let text = std::fs::read_to_string(data::find("data/text/wikitext2_test.txt")?).unwrap();
    let ends = tokenizer.encode_template("").unwrap();
    let text: String = text.chars().take(60_000).collect();
    let ids = tokenizer.encode_plain(&text).unwrap();
    let window = |ids: &[u32]| [&ends[..1], ids, &ends[1..]].concat();
    Some(ids.chunks_exact(126).take(count).map(window).collect())
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn nothing_removed_changes_nothing() {
    let Some((encoder, tokenizer)) = minilm() else { return };
    let Some(windows) = windows(&tokenizer, 3) else { return };
    let mut scratch = Scratch::new(Par::Seq);
    let (method, none) = (ToMe::new(), Schedule::Tokens(Vec::new()));
    for ids in &windows {
        let reduction =
            Reduction { method: &method, schedule: &none, protected: &[0, ids.len() - 1] };
        let reduced = encoder.reduced_hidden_state(ids, reduction, &mut scratch).unwrap();
        let (mask, types) = (vec![1; ids.len()], vec![0; ids.len()]);
        let whole = encoder.last_hidden_state(ids, &mask, &types, &mut scratch).unwrap();
        assert_eq!(reduced.hidden, whole);
        assert_eq!(reduced.map, TokenMap::identity(ids.len()));
        let embedding = encoder.embed_ids_reduced(ids, reduction, &mut scratch).unwrap();
        assert_eq!(embedding, encoder.embed_ids(ids, &mask, &mut scratch).unwrap());
    }
}

#[test]
fn tome_keeps_embeddings_better_than_the_baselines() {
    let Some((encoder, tokenizer)) = minilm() else { return };
    let Some(windows) = windows(&tokenizer, 24) else { return };
    let mut scratch = Scratch::new(Par::Seq);
    let methods: [&dyn TokenReduce; 5] = [
        &ToMe::new(),
        &Pooling::new(),
        &RandomKeep::new(1),
        &AttentionTopK::new(),
        &DivPrune::new(),
    ];
    for share in [0.1, 0.3, 0.5] {
        let schedule = Schedule::share(share).unwrap();
        let mut means = Vec::new();
        for method in methods {
            let mut sum = 0.0;
            for ids in &windows {
                let whole = encoder.embed_ids(ids, &vec![1; ids.len()], &mut scratch).unwrap();
                let reduction =
                    Reduction { method, schedule: &schedule, protected: &[0, ids.len() - 1] };
                let reduced = encoder.reduced_hidden_state(ids, reduction, &mut scratch).unwrap();
                let map = &reduced.map;
                let counted: u32 = map.counts().iter().sum();
                assert_eq!(counted as usize + map.dropped(), ids.len());
                assert_eq!(map.target(0), Some(0), "the class token stays first");
                sum += cosine(
                    &whole,
                    &encoder.embed_ids_reduced(ids, reduction, &mut scratch).unwrap(),
                );
            }
            means.push(sum / windows.len() as f32);
            println!(
                "{share} of the tokens of each block, {}: cosine {:.4}",
                method.id(),
                means[means.len() - 1]
            );
        }
        assert!(means[0] > means[1] && means[0] > means[2], "{share}: {means:?}");
    }
}

#[test]
fn wrong_reductions_are_refused() {
    let Some((encoder, _)) = minilm() else { return };
    let mut scratch = Scratch::new(Par::Seq);
    let (tome, half) = (ToMe::new(), Schedule::share(0.5).unwrap());
    let reduction = |protected| Reduction { method: &tome, schedule: &half, protected };
    let ids = [101, 2023, 2003, 102];
    let error = encoder.embed_ids_reduced(&ids, reduction(&[9]), &mut scratch).unwrap_err();
    assert!(error.to_string().contains("protected token 9 of 4"), "{error}");
    assert!(encoder.embed_ids_reduced(&[], reduction(&[]), &mut scratch).is_err());
    assert!(encoder.embed_ids_reduced(&[u32::MAX], reduction(&[]), &mut scratch).is_err());
    assert_eq!(
        encoder.embed_ids_reduced(&ids[..1], reduction(&[0]), &mut scratch).unwrap().len(),
        384
    );
}

/// Images: nothing removed changes nothing; methods that ask for places or for the class token's attention get them.
#[test]
fn images_carry_fewer_tokens() {
    let Some(folder) = data::find("golden/models/vit") else { return };
    let source = open(&folder).unwrap();
    let (encoder, mut scratch) = (source.encoder().unwrap(), Scratch::new(Par::Seq));
    let expected = Corpus::read(&folder.join("expected.safetensors")).unwrap();
    let images = expected.images(&source, 2).unwrap();
    let methods: [&dyn TokenReduce; 6] = [
        &ToMe::new(),
        &RandomKeep::new(1),
        &DiffRate::default(),
        &TokenCorr::default(),
        &GeometryMerge::default(),
        &ConceptChunk::new(),
    ];
    for image in images.outer_iter() {
        let whole = encoder.image_hidden_state(image.view(), &mut scratch).unwrap();
        let (none, some) = (Schedule::Tokens(Vec::new()), Schedule::share(0.2).unwrap());
        for method in methods {
            let with = |schedule| Reduction { method, schedule, protected: &[] };
            let mut run = |reduction| {
                encoder.image_hidden_state_reduced(image.view(), reduction, &mut scratch).unwrap()
            };
            assert_eq!(run(with(&none)).hidden, whole, "{}", method.id());
            let reduced = run(with(&some));
            assert!(reduced.hidden.nrows() < whole.nrows(), "{}", method.id());
            assert_eq!(reduced.map.counts()[0], 1, "the class token is alone");
            let (class, was) = (reduced.hidden.row(0), whole.row(0));
            let cosine = class.dot(&was) / (class.dot(&class) * was.dot(&was)).sqrt();
            println!(
                "{}: {} of {} tokens, cosine {cosine:.4}",
                method.id(),
                reduced.hidden.nrows(),
                whole.nrows()
            );
            assert!(cosine > 0.5, "{}: {cosine}", method.id());
        }
    }
    let asks = QueryPooling::default();
    let schedule = Schedule::share(0.2).unwrap();
    let reduction = Reduction { method: &asks, schedule: &schedule, protected: &[] };
    let image = images.index_axis(Axis(0), 0);
    let error = encoder.image_hidden_state_reduced(image, reduction, &mut scratch).unwrap_err();
    assert!(error.to_string().contains("needs the relevance"), "{error}");
}

/// Weights of a method are what its groups are merged by: first tokens of chunks, not means.
#[test]
fn weights_of_a_method_count() {
    let Some((encoder, tokenizer)) = minilm() else { return };
    let Some(windows) = windows(&tokenizer, 1) else { return };
    let mut scratch = Scratch::new(Par::Seq);
    let schedule = Schedule::Tokens(vec![0, 0, 0, 0, 0, 60]);
    let (first, mean) = (ConceptChunk::new(), ConceptChunk::new().with_mean(true));
    let ids = &windows[0];
    let mut run = |method: &dyn TokenReduce| {
        let reduction = Reduction { method, schedule: &schedule, protected: &[0, ids.len() - 1] };
        encoder.reduced_hidden_state(ids, reduction, &mut scratch).unwrap()
    };
    let (first, mean) = (run(&first), run(&mean));
    assert_eq!(first.map, mean.map);
    for (target, count) in first.map.counts().iter().enumerate() {
        assert_eq!(first.hidden.row(target) == mean.hidden.row(target), *count == 1);
    }
}
