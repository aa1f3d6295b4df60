//! What is found out before the work: what there is to do, on what, and whether it is the work of an earlier run.

use std::path::Path;

use tensorpress_model::Source;
use tensorpress_tensor::{Error, Result};

use super::Compressor;
use super::calibration::{Inputs, Samples};
use super::folder::{Work, partial_of};
use super::plan::Plan;
use super::rewrite::{self, Named};
use super::run::{Done, Task};
use super::side::Side;
use super::state::Identity;

impl Compressor<'_> {
    /// What the weights of a source decode to that is compressed already, if that is asked for.
    pub(super) fn decoded(&self, source: &Source) -> Result<Option<Source>> {
        let decoded = if self.from_quantized { Some(source.decoded()?) } else { None };
        if let (Some(name), None) = (source.trees().keys().next(), &decoded) {
            let message = "is compressed already: compress the model it was made from";
            return Err(Error::unsupported(message).in_tensor(name));
        }
        Ok(decoded)
    }

    /// All that there is to be made, in the folder of unfinished work; and what there is to say of the source.
    pub(super) fn make(
        &mut self,
        source: &Source,
        out: &Path,
    ) -> Result<(Vec<String>, Work, Done)> {
        let judged_on = self.judged_on.as_deref();
        let outline = match &self.mix {
            Some(_) => self.then.outline(source, out)?,
            None => None,
        };
        let mix = self.mix.take();
        self.mix =
            mix.map(|mix| mix.for_model(source, judged_on, outline.is_some())).transpose()?;
        let recipe = self.identity_of_recipe(outline.is_some());
        let mut rewrites = self.recipe.rewrites();
        rewrites.append(&mut self.rewrites);
        let plan = match &self.mix {
            None => Plan::new(source, &self.recipe, !rewrites.is_empty())?,
            // What it takes is known of the source alone.
            Some(_) if !rewrites.is_empty() && outline.is_some() => {
                let message = "a budget of one file after changes of whole blocks: make these first, in a folder";
                return Err(Error::unsupported(message));
            }
            Some(mix) => mix.plan(source)?,
        };
        let says = source.layout(true).says;
        let sayable = |(_, one): &Named| one.keeps_blocks_alike() && one.is_sayable(says);
        let plain = !rewrites.is_empty()
            && plan.is_empty()
            && source.config().shapes.is_none()
            && rewrites.iter().all(sayable);
        // What is wrong with the model is better said before the work than in its middle.
        (0..source.blocks()).try_for_each(|block| source.block(block).map(drop))?;
        let notes = Side::of(source, out)?.notes;
        let layout = source.layout(plain);
        rewrites.iter().try_for_each(|(_, rewrite)| rewrite.fits(&layout))?;
        let samples = self.samples(source, &rewrites, &plan)?;
        let identity =
            Identity::new(source, recipe, &samples, self.supplied.as_deref(), self.seed)?;
        let mut work = Work::open(partial_of(out), identity, source.checkpoint(), self.force)?;
        let task = Task { source, out, rewrites, samples, plan, plain, outline };
        let done = self.work(task, &mut work);
        let done = work.ended(done)?;
        Ok((notes, work, done))
    }

    /// All that decides what the recipe does.
    fn identity_of_recipe(&self, in_file: bool) -> String {
        let added = self.rewrites.iter().map(|(text, _)| format!(" + {text}"));
        let inputs = match self.inputs {
            Inputs::Compressed => None,
            Inputs::Original => Some(" on inputs of the original model".to_owned()),
        };
        let recipe = match (&self.mix, self.recipe.canonical()) {
            (None, recipe) => recipe,
            (Some(mix), none) if none.is_empty() => mix.canonical(),
            (Some(mix), rewrites) => format!("{rewrites} | {}", mix.canonical()),
        };
        let sized = in_file.then(|| " as one file".to_owned());
        added.chain(inputs).chain(sized).fold(recipe, |all, one| all + &one)
    }

    /// What to calibrate on, if anything needs it.
    fn samples(&self, source: &Source, rewrites: &[Named], plan: &Plan) -> Result<Samples> {
        // What a caller supplies is of the model that the first one finds.
        let supplied = |at: usize| at == 0 && self.supplied.is_some();
        let calibrated =
            |(at, named): &(usize, &Named)| rewrite::is_calibrated(&*named.1, supplied(*at));
        let needy =
            rewrites.iter().enumerate().find(calibrated).map(|(_, (text, _))| text.as_str());
        let Some(stage) = needy.or(plan.needs_calibration()) else {
            // Nothing needs it, but losses are better known with it.
            let text = self.calibration.as_ref().filter(|_| plan.is_mixed());
            let text = text.filter(|_| source.unknown().is_none());
            return text.map_or(Ok(Samples::default()), |text| text.samples(source));
        };
        if let Some(why) = source.unknown() {
            return Err(Error::unsupported(format!(
                "`{stage}` needs calibration, and the model cannot be run: {why}"
            )));
        }
        match &self.calibration {
            Some(text) => text.samples(source),
            None => {
                let message = format!("`{stage}` needs a calibration text, and none was given");
                Err(Error::missing_calibration(message))
            }
        }
    }
}
