//! EvoPress in a few lines: which of three widths each matrix gets, judged on the model itself, and beside it the least sum
//! of what matrices lose. `cargo run --release -p tensorpress --example evopress -- GENERATIONS CHILDREN`.

use std::collections::BTreeMap;
use std::path::Path;

use tensorpress::allocate::{Choice, Evolution, Exact, Round, Solver, Table, Unit};
use tensorpress::model::text::{Corpus, Limits};
use tensorpress::model::{Decoder, Reference, embedded};
use tensorpress::pipeline::{CalibrationText, Inputs};
use tensorpress::prelude::*;
use tensorpress::tensor::Storage;
use tensorpress::tensor::node::{Dense, decode};

const BITS: [u8; 3] = [2, 3, 4];

/// A matrix at each width: its values, and what it takes and loses.
type Levels = Vec<(Dense, u64, f64)>;

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).filter_map(|word| word.parse::<usize>().ok());
    let (generations, children) = (numbers.next().unwrap_or(4), numbers.next().unwrap_or(8));
    let source = Source::demo(&registry())?;
    let segments = |text: &str, name: &str, count: usize| {
        let limits = Limits { max_segments: Some(count), max_tokens: Some(256) };
        Corpus::from_text(text, Path::new(name))?.segments(&source, Default::default(), limits)
    };
    // Searched on one text, judged on another.
    let searched = segments(embedded::CALIBRATION, "calibration.txt", 16)?;
    let held_out = segments(embedded::HELD_OUT, "heldout.jsonl", 24)?;

    let levels = levels(&source)?;
    let unit = |(name, levels): (&String, &Levels)| {
        let choices = levels.iter().map(|(_, bytes, loss)| Choice::new(*bytes, *loss));
        Unit::new(name, choices.collect::<Vec<_>>())
    };
    let table = Table::new(levels.iter().map(unit).collect::<Vec<_>>())?;
    let uniform = vec![1; levels.len()];
    let budget = table.cost(&uniform);

    let original = source.decoder()?.materialise()?;
    let few = Reference::new(&original, &searched, &|_, _| {})?;
    let many = Reference::new(&original, &held_out, &|_, _| {})?;
    let mut model = source.decoder()?.materialise()?;
    let mut judge = |choices: &[usize], reference: &Reference<'_>| -> Result<f64> {
        set(&mut model, &levels, choices)?;
        let judged = reference.judge(&model, &|_, _| {})?;
        Ok(judged.kld_mean.unwrap_or(f64::NAN))
    };
    let rounds = [Round::new(1, 0)];
    let search = Evolution::new().with_generations(generations).with_offspring(children);
    let search = search.with_rounds(rounds).with_start(uniform.clone());
    let evolved = search.search(&table, budget, &mut |choices, _| judge(choices, &few))?;
    let exact = Exact::new().solve(&table, budget)?;
    for (name, choices) in
        [("3 bits for all", &uniform), ("least sum", &exact.choices), ("evolved", &evolved.choices)]
    {
        let kld = judge(choices, &many)?;
        println!("{name}: {} bytes, KLD {kld:.4}", table.cost(choices));
        assert!(table.cost(choices) <= budget && kld.is_finite());
    }
    Ok(())
}

/// Every matrix at every width, each made as if it were alone: on inputs of the original model.
fn levels(source: &Source) -> Result<BTreeMap<String, Levels>> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut all: BTreeMap<String, Levels> = BTreeMap::new();
    for bits in BITS {
        let out = folder.path().join(bits.to_string());
        let text = CalibrationText::new(embedded::CALIBRATION).with_windows(8).with_length(128);
        let recipe = Recipe::parse(&format!("gptq(bits={bits}, group=64)"))?;
        let report = Compressor::new(recipe)
            .with_calibration(text)
            .with_inputs(Inputs::Original)
            .run(source, &out)?;
        let made = tensorpress::open_model(&out)?;
        for layer in &report.layers {
            let node = made.weight(&layer.name)?;
            let values = decode(&*node)?;
            let loss = layer.error.unwrap_or(1.0).powi(2);
            let level = (Dense::from(values), Storage::of(&*node)?.bytes(), loss);
            all.entry(layer.name.clone()).or_default().push(level);
        }
    }
    Ok(all)
}

/// Gives each matrix its level.
fn set(model: &mut Decoder, levels: &BTreeMap<String, Levels>, choices: &[usize]) -> Result<()> {
    let chosen: BTreeMap<&str, &Dense> = levels
        .iter()
        .zip(choices)
        .map(|((name, levels), choice)| (name.as_str(), &levels[*choice].0))
        .collect();
    for linear in model.blocks_mut().iter_mut().flat_map(|block| block.linears_mut()) {
        if let Some(values) = chosen.get(linear.name()) {
            linear.replace(Box::new((*values).clone()))?;
        }
    }
    Ok(())
}
