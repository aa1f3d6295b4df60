//! A block on the way back.

use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use tensorpress_tensor::{Error, Result, Scratch};

use super::attention::AttentionTape;
use super::mlp::MlpTape;
use super::moe::MoeTape;
use super::sweep::{Found, Sweep, Weights};
use crate::block::{Block, Mixer, Part};

/// What a part leaves on the way forward.
struct PartTape {
    /// What its norm read.
    before: Option<Array2<f32>>,
    mixer: MixerTape,
    /// What the norm behind its mixer read.
    made: Option<Array2<f32>>,
    /// What the norm behind its sum read.
    summed: Option<Array2<f32>>,
}

enum MixerTape {
    Attention(AttentionTape),
    Mlp(MlpTape),
    Moe(MoeTape),
}

impl Block {
    /// Refuses parts that have no backward pass.
    pub(super) fn differentiable(&self) -> Result<()> {
        let refuse = |what: &str| {
            let message = format!("block {} cannot be differentiated: {what}", self.index);
            let error = Error::unsupported(message);
            match self.linears().next() {
                Some(layer) => error.in_tensor(layer.name()),
                None => error,
            }
        };
        for part in &self.parts {
            match &part.mixer {
                Mixer::Attention(attention) if !attention.causal => {
                    return Err(refuse("it is an encoder's"));
                }
                Mixer::Attention(attention) if attention.relative.is_some() => {
                    return Err(refuse("its attention has learned biases of distances"));
                }
                Mixer::Attention(_) | Mixer::Mlp(_) | Mixer::Moe(_) => {}
                Mixer::Scan(_) => return Err(refuse("it has a state-space scan")),
                Mixer::Other(_) => return Err(refuse("nothing is known of its matrices")),
            }
        }
        Ok(())
    }

    /// Runs one window `hidden` `[tokens, hidden]` anew, and replaces the gradients `g` of what the block makes of it by
    /// those of itself; gives what is wanted of the layers.
    pub(super) fn back(
        &self,
        hidden: ArrayView2<'_, f32>,
        mut g: ArrayViewMut2<'_, f32>,
        weights: &Weights<'_>,
        wanted: &[bool],
        scratch: &mut Scratch,
    ) -> Result<Vec<Found>> {
        let mut sweep = Sweep { weights, wanted, found: Vec::new(), scratch };
        let tapes = self.record(hidden, &mut sweep)?;
        // Of what all parts of a parallel block read, and of what parts read that read the same.
        let mut given: Array2<f32> = Array2::zeros(if self.parallel { g.dim() } else { (0, 0) });
        let mut shared: Option<Array2<f32>> = None;
        for (part, tape) in self.parts.iter().zip(tapes).rev() {
            let by_normed = part.back(tape.mixer, &tape.made, &tape.summed, &mut g, &mut sweep)?;
            let mut by_normed = match shared.take() {
                Some(others) => others + by_normed,
                None => by_normed,
            };
            if part.same {
                shared = Some(by_normed);
                continue;
            }
            if let (Some(norm), Some(before)) = (&part.norm, &tape.before) {
                norm.back(before.view(), by_normed.view_mut());
            }
            match self.parallel {
                true => given += &by_normed,
                false => g += &by_normed,
            }
        }
        if self.parallel {
            g += &given;
        }
        Ok(sweep.found)
    }

    fn record(
        &self,
        hidden: ArrayView2<'_, f32>,
        sweep: &mut Sweep<'_, '_>,
    ) -> Result<Vec<PartTape>> {
        let mut stream = hidden.to_owned();
        let mut normed = Arc::new(Array2::zeros((0, 0)));
        let mut tapes = Vec::with_capacity(self.parts.len());
        for (i, part) in self.parts.iter().enumerate() {
            let mut before = None;
            if !part.same {
                let mut read = if self.parallel { hidden.to_owned() } else { stream.clone() };
                if let Some(norm) = &part.norm {
                    before = Some(read.clone());
                    norm.apply(read.view_mut());
                }
                normed = Arc::new(read);
            }
            // Of the last part nobody needs the sum.
            let last = i + 1 == self.parts.len() && part.then.is_none();
            let x = normed.clone();
            let (mixer, made) = match &part.mixer {
                Mixer::Attention(attention) => {
                    let tape = attention.record(x, sweep)?;
                    let out = (!last || part.after.is_some())
                        .then(|| sweep.forward(&attention.o, tape.out.view()));
                    (MixerTape::Attention(tape), out.transpose()?)
                }
                Mixer::Mlp(mlp) => {
                    let tape = mlp.record(x, sweep)?;
                    let out = (!last || part.after.is_some())
                        .then(|| sweep.forward(&mlp.down, tape.middle.view()));
                    (MixerTape::Mlp(tape), out.transpose()?)
                }
                Mixer::Moe(moe) => {
                    let (tape, out) = moe.record(x, sweep)?;
                    (MixerTape::Moe(tape), Some(out))
                }
                Mixer::Scan(_) | Mixer::Other(_) => {
                    return Err(Error::unsupported("a backward pass of this part"));
                }
            };
            let mut tape = PartTape { before, mixer, made: None, summed: None };
            if let Some(mut made) = made {
                if let Some(after) = &part.after {
                    tape.made = Some(made.clone());
                    after.apply(made.view_mut());
                }
                stream.scaled_add(part.scale, &made);
            }
            if let Some(then) = &part.then {
                tape.summed = Some(stream.clone());
                then.apply(stream.view_mut());
            }
            tapes.push(tape);
        }
        Ok(tapes)
    }
}

impl Part {
    /// Replaces the gradients `g` of the stream behind it by those of the stream before it, but for what goes through its
    /// mixer: gives the gradients of what that reads.
    fn back(
        &self,
        mixer: MixerTape,
        made: &Option<Array2<f32>>,
        summed: &Option<Array2<f32>>,
        g: &mut ArrayViewMut2<'_, f32>,
        sweep: &mut Sweep<'_, '_>,
    ) -> Result<Array2<f32>> {
        if let (Some(then), Some(summed)) = (&self.then, summed) {
            then.back(summed.view(), g.view_mut());
        }
        let mut by_made = g.to_owned();
        if self.scale != 1.0 {
            by_made *= self.scale;
        }
        if let (Some(after), Some(made)) = (&self.after, made) {
            after.back(made.view(), by_made.view_mut());
        }
        match (&self.mixer, mixer) {
            (Mixer::Attention(attention), MixerTape::Attention(tape)) => {
                attention.back(tape, by_made, sweep)
            }
            (Mixer::Mlp(mlp), MixerTape::Mlp(tape)) => {
                let mut dx = Array2::zeros(tape.x.dim());
                mlp.back(tape, by_made, &mut dx, sweep);
                Ok(dx)
            }
            (Mixer::Moe(moe), MixerTape::Moe(tape)) => Ok(moe.back(tape, by_made, sweep)),
            _ => Err(Error::unsupported("a backward pass of this part")),
        }
    }
}
