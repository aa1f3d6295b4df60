//! Continuing a text, greedily or by sampling.

use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::{Error, Result, Scratch};

use crate::cache::KvCache;
use crate::decoder::Decoder;
use crate::layers::math;
use crate::tokenizer::Tokenizer;

/// How a text is continued.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Generation {
    /// New tokens at most.
    pub max_tokens: usize,
    /// 0 takes the most probable token; otherwise tokens are drawn from softmax(logits / temperature).
    pub temperature: f32,
    /// Seed of the draws.
    pub seed: u64,
    /// Parallelism inside the products.
    pub par: Par,
}

impl Default for Generation {
    /// 200 tokens, greedy.
    fn default() -> Self {
        Self { max_tokens: 200, temperature: 0.0, seed: 0, par: Par::Seq }
    }
}

/// Continues `prompt` until an end-of-text token (which is not given), the limit, or the model's context. Every new
/// token is told to `on_token`, whose `false` stops.
///
/// # Errors
/// `InvalidArgument` for an empty prompt or a temperature that is negative or not finite; those of
/// [`Decoder::forward`] and of `on_token`.
pub fn generate(
    model: &Decoder,
    prompt: &[u32],
    how: Generation,
    cache: &mut [Box<dyn KvCache>],
    on_token: &mut dyn FnMut(u32) -> Result<bool>,
) -> Result<Vec<u32>> {
    if !(how.temperature.is_finite() && how.temperature >= 0.0) {
        let message = format!("temperature {} must be at least 0 and finite", how.temperature);
        return Err(Error::invalid(message));
    }
    let mut random = SplitMix::new(how.seed);
    let mut scratch = Scratch::new(how.par);
    let mut new = Vec::new();
    if how.max_tokens == 0 {
        return Ok(new);
    }
    let mut logits = model.logits_last(prompt, cache, &mut scratch)?;
    loop {
        let token = choose(&mut logits, how.temperature, &mut random) as u32;
        if model.config().eos.contains(&token) {
            return Ok(new);
        }
        new.push(token);
        let full = cache.first().is_some_and(|c| c.len() >= model.config().context);
        if !on_token(token)? || new.len() >= how.max_tokens || full {
            return Ok(new);
        }
        logits = model.logits_last(&[token], cache, &mut scratch)?;
    }
}

/// Continues a text; gives the new text, and its pieces to `on_text` as they come.
///
/// # Errors
/// As [`generate`], and those of the tokenizer.
pub fn generate_text(
    model: &Decoder,
    tokenizer: &Tokenizer,
    prompt: &str,
    how: Generation,
    on_text: &mut dyn FnMut(&str),
) -> Result<String> {
    let ids = tokenizer.encode(prompt)?;
    let mut stream = tokenizer.stream();
    // The prompt's last tokens decide how the first new one is spelt.
    for id in &ids[ids.len().saturating_sub(4)..] {
        stream.push(*id)?;
    }
    let mut text = String::new();
    let mut show = |piece: String| {
        if !piece.is_empty() {
            on_text(&piece);
            text.push_str(&piece);
        }
    };
    generate(model, &ids, how, &mut model.cache(), &mut |token| {
        show(stream.push(token)?);
        Ok(true)
    })?;
    show(stream.finish()?);
    Ok(text)
}

/// The next token.
fn choose(logits: &mut [f32], temperature: f32, random: &mut SplitMix) -> usize {
    if temperature == 0.0 {
        return math::argmax(logits);
    }
    math::softmax(logits, 1.0 / temperature);
    let mut left = random.next_f64();
    for (token, p) in logits.iter().enumerate() {
        left -= f64::from(*p);
        if left < 0.0 {
            return token;
        }
    }
    // Rounding may leave a little: the most probable token then.
    math::argmax(logits)
}
