//! Global guidance: Liu et al., *Compression with Global Guidance: Towards Training-free High-Resolution MLLMs
//! Acceleration*, 2025.

use std::collections::BTreeMap;

use ndarray::ArrayView2;
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{Error, Result};

use super::{best, by_number};
use crate::hints::{Place, TokenHints, need};
use crate::map::TokenMap;
use crate::reduce::{TokenReduce, free};
use crate::share::shares;
use crate::stage::{TokenPart, reduction_of};

/// Crops keep as many tokens as the thumbnail's class token finds in them, those that both class tokens attend to.
///
/// With R = keep / tokens and s_i the attention of the thumbnail's class token in the region of crop i, crop i keeps a share
/// r_i = R (1 + softmax(s / temperature)_i - 1 / crops), at most 1; what rounding and bounds leave is shared out likewise. A
/// token's score is its crop's class attention plus the thumbnail's, resized bilinearly to the crop, each of length 1
/// over the crop. The thumbnail keeps the share R with the most class attention.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GlobalCom2 {
    /// How even the crops' shares are, above 0.
    pub temperature: f64,
}

impl Default for GlobalCom2 {
    fn default() -> Self {
        Self { temperature: 10.0 }
    }
}

impl Knobs for GlobalCom2 {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float(
            "temperature",
            &mut self.temperature,
            1e-6..=1e6,
            "how even the crops' shares are",
        )
    }
}

pub(crate) fn stage() -> Row<TokenPart> {
    let about = "keeps tokens of crops as a thumbnail's class token finds them worth";
    reduction_of::<GlobalCom2>("globalcom2", about)
}

impl GlobalCom2 {
    /// Shares of crops are as even as this.
    #[must_use]
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }
}

/// A thumbnail's class attention as a picture.
struct Thumbnail {
    attention: BTreeMap<Place, f64>,
    size: Place,
}

impl Thumbnail {
    fn new(tokens: &[usize], attention: &[f32], places: &[Option<Place>]) -> Self {
        let at = |token: &usize| Some((places[*token]?, f64::from(attention[*token])));
        let attention: BTreeMap<Place, f64> = tokens.iter().filter_map(at).collect();
        Self { size: extent(attention.keys().copied()), attention }
    }

    /// The crop of a layout that a place of the thumbnail lies in: where its centre does.
    fn crop(&self, place: Place, layout: Place) -> usize {
        let along = |axis: usize| (2 * place[axis] + 1) * layout[axis] / (2 * self.size[axis]);
        along(0) * layout[1] + along(1)
    }

    /// Its value at the centre of a token of a crop of `size`, between the centres of its own; borders are repeated.
    fn sample(&self, place: Place, size: Place, crop: usize, layout: Place) -> f64 {
        let crop = [crop / layout[1], crop % layout[1]];
        let along = |axis: usize| {
            let whole = (size[axis] * layout[axis]) as f64;
            let at = (crop[axis] * size[axis] + place[axis]) as f64 + 0.5;
            let last = self.size[axis].saturating_sub(1) as f64;
            (at / whole * self.size[axis] as f64 - 0.5).clamp(0.0, last)
        };
        let (row, col) = (along(0), along(1));
        let mut sum = 0.0;
        for (r, by_row) in [(row.floor(), 1.0 - row.fract()), (row.ceil(), row.fract())] {
            for (c, by_col) in [(col.floor(), 1.0 - col.fract()), (col.ceil(), col.fract())] {
                let value = self.attention.get(&[r as usize, c as usize]).copied();
                sum += by_row * by_col * value.unwrap_or(0.0);
            }
        }
        sum
    }
}

/// Rows and columns that hold all places.
fn extent(places: impl Iterator<Item = Place>) -> Place {
    places.fold([0, 0], |most, place| [0, 1].map(|axis| most[axis].max(place[axis] + 1)))
}

impl TokenReduce for GlobalCom2 {
    fn id(&self) -> &'static str {
        "globalcom2"
    }

    fn needs_attention(&self) -> bool {
        true
    }

    fn plan(
        &self,
        x: ArrayView2<'_, f32>,
        hints: &TokenHints<'_>,
        keep: usize,
    ) -> Result<TokenMap> {
        let protected = hints.check(x, keep)?;
        let attention = hints.class_or_received(self.id())?;
        let places = need(hints.places, self.id(), "the places of the tokens")?;
        let crops = need(hints.crops, self.id(), "crops with a thumbnail")?;
        let number = need(crops.thumbnail, self.id(), "crops with a thumbnail")?;
        if places.iter().flatten().flatten().any(|at| *at >= 1 << 24) {
            return Err(Error::invalid(format!("{}: places are below 2^24", self.id())));
        }
        let all: Vec<usize> = (0..x.nrows()).filter(|t| crops.of[*t] == number).collect();
        let thumbnail = Thumbnail::new(&all, attention, places);
        // Attention of the thumbnail in the region of each crop; the thumbnail's own number is left out.
        let region = |crop: usize| crop - usize::from(crop > number);
        let mut found = vec![0.0; crops.layout[0] * crops.layout[1]];
        for (place, value) in &thumbnail.attention {
            if let Some(sum) = found.get_mut(thumbnail.crop(*place, crops.layout)) {
                *sum += value;
            }
        }
        let most = found.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> =
            found.iter().map(|s| ((s - most) / self.temperature).exp()).collect();
        let sum: f64 = powers.iter().sum();

        let free = free(&protected);
        let sets = by_number(&free, |token| crops.of[token]);
        let keep = keep - (x.nrows() - free.len());
        let share = keep as f64 / free.len().max(1) as f64;
        let mut weights = Vec::with_capacity(sets.len());
        let mut scores = vec![0.0; x.nrows()];
        for set in &sets {
            let crop = crops.of[set[0]];
            if crop == number {
                weights.push(share * set.len() as f64);
                set.iter().for_each(|token| scores[*token] = f64::from(attention[*token]));
                continue;
            }
            let finds = powers[region(crop)] / sum - 1.0 / powers.len() as f64;
            weights.push((share * (1.0 + finds)).min(1.0) * set.len() as f64);
            let whole = (0..x.nrows()).filter(|token| crops.of[*token] == crop);
            let size = extent(whole.filter_map(|token| places[token]));
            let global = |token: &usize| {
                places[*token]
                    .map_or(0.0, |at| thumbnail.sample(at, size, region(crop), crops.layout))
            };
            let global: Vec<f64> = set.iter().map(global).collect();
            let local: Vec<f64> = set.iter().map(|token| f64::from(attention[*token])).collect();
            for (token, (local, global)) in set.iter().zip(unit(local).zip(unit(global))) {
                scores[*token] = local + global;
            }
        }
        let tokens: Vec<usize> = sets.iter().map(Vec::len).collect();
        let mut kept = best(&sets, &shares(&weights, keep, 0, &tokens), |token| scores[token]);
        kept.extend((0..x.nrows()).filter(|token| protected[*token]));
        TokenMap::keep(x.nrows(), &kept)
    }
}

/// Values divided by their length.
fn unit(values: Vec<f64>) -> impl Iterator<Item = f64> {
    let length = values.iter().map(|v| v * v).sum::<f64>().sqrt();
    values.into_iter().map(move |v| if length > 0.0 { v / length } else { 0.0 })
}
