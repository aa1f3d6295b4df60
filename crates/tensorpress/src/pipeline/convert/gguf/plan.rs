//! What a file will hold.

use std::collections::BTreeMap;
use std::path::Path;

use tensorpress_formats::export::{Fit, Survey, fallback, fitting};
use tensorpress_formats::ggml::Type;
use tensorpress_formats::gguf::model::{
    Arch, Factors, HEADER, Metadata, Place, config_of, metadata_of,
};
use tensorpress_formats::gguf::{Header, TensorInfo, Value, tokenizer};
use tensorpress_model::Source;
use tensorpress_tensor::{Context as _, Error, ErrorKind, Node, Result};

use super::super::Convert;

/// A tensor of the file: what it is made of.
pub(super) struct Entry {
    /// Names in the source; of experts' matrices, all of them in order.
    pub(super) from: Vec<String>,
    pub(super) place: Place,
    /// Lengths in the file's order.
    pub(super) dims: Vec<u64>,
    pub(super) fit: Fit,
}

/// Everything that is found out before the first byte is written.
pub(super) struct Plan {
    pub(super) header: Header,
    /// Length of the file.
    pub(super) size: u64,
    pub(super) entries: BTreeMap<String, Entry>,
    /// Values of tensors that are made of the config.
    pub(super) made: BTreeMap<String, Vec<f32>>,
    pub(super) notes: Vec<String>,
}

impl Plan {
    pub(super) fn new(
        job: &Convert<'_>,
        source: &Source,
        out: &Path,
        ty: Option<Type>,
    ) -> Result<Self> {
        let mut notes = Vec::new();
        let arch = Arch::of_folder(source.raw_config()["model_type"].as_str().unwrap_or_default());
        if let Some((header, size)) = kept_header(source)? {
            let entries = entries(job, source, arch, Some(&header), ty, &mut notes)?;
            if has_tensors(&header, &entries) {
                return Self::again(&header, size, entries, ty, notes);
            }
            // A model that was changed since: heads, blocks or names.
            let what = "its tensors are not those of the GGUF file that it came from: what that file said is made anew";
            notes = vec![what.to_owned()];
        }
        Self::anew(job, source, arch, out, ty, notes)
    }

    /// The file that the model came from, its tensors perhaps of other types.
    fn again(
        header: &Header,
        size: u64,
        entries: BTreeMap<String, Entry>,
        ty: Option<Type>,
        notes: Vec<String>,
    ) -> Result<Self> {
        let same = |info: &TensorInfo| entries[&info.name].fit.id() == info.type_id;
        let made = BTreeMap::new();
        if header.tensors().iter().all(same) {
            // Whether the last tensor was filled up is the file's own way.
            let size = size.min(header.file_size());
            return Ok(Self { header: header.clone(), size, entries, made, notes });
        }
        let mut metadata = header.metadata().to_vec();
        for (key, value) in &mut metadata {
            if key == "general.file_type" {
                *value = Value::U32(file_type(&entries, ty));
            }
        }
        let header = header_of(metadata, Some(header), &entries)?;
        Ok(Self { size: header.file_size(), header, entries, made, notes })
    }

    /// A file of a model that came from none.
    fn anew(
        job: &Convert<'_>,
        source: &Source,
        arch: Option<&Arch>,
        out: &Path,
        ty: Option<Type>,
        mut notes: Vec<String>,
    ) -> Result<Self> {
        let Some(arch) = arch else {
            let kind = &source.raw_config()["model_type"];
            let known: Vec<&str> = Arch::all().map(|arch| arch.kind).collect();
            return Err(Error::unsupported(format!(
                "`model_type` = {kind}: architectures with names in GGUF files are {}",
                known.join(", ")
            )));
        };
        let mut entries = entries(job, source, Some(arch), None, ty, &mut notes)?;
        let file_type = file_type(&entries, ty);
        let (metadata, made) = new_metadata(job, source, arch, out, file_type, &mut notes)?;
        let made: BTreeMap<String, Vec<f32>> = made.into_iter().collect();
        for (name, values) in &made {
            let place = Place::same(name);
            let (dims, fit) = (vec![values.len() as u64], Fit::F32);
            entries.insert(name.clone(), Entry { from: Vec::new(), place, dims, fit });
        }
        let header = header_of(metadata, None, &entries)?;
        check_reading(source, arch, config_of(&header, &made)?, &mut notes)?;
        Ok(Self { size: header.file_size(), header, entries, made, notes })
    }
}

/// A header of these tensors, in the order that `kept` has them.
fn header_of(
    metadata: Metadata,
    kept: Option<&Header>,
    entries: &BTreeMap<String, Entry>,
) -> Result<Header> {
    let tensor = |name: String| {
        let entry = &entries[&name];
        let (dims, id) = (entry.dims.clone(), entry.fit.id());
        (name, dims, id)
    };
    Header::new(metadata, order(kept, entries).into_iter().map(tensor))
}

/// That readers of a file with this configuration compute what the model does: what files have no words for is found by
/// reading what they would say.
fn check_reading(
    source: &Source,
    arch: &Arch,
    mut would_be: serde_json::Value,
    notes: &mut Vec<String>,
) -> Result<()> {
    let config = source.raw_config();
    // The same stretches, in other words.
    if config.to_string().contains("\"llama3\"") {
        for key in ["rope_scaling", "rope_parameters", "rope_theta"] {
            would_be[key] = config[key].clone();
        }
    }
    let Some(what) = source.computes_otherwise(&would_be)? else { return Ok(()) };
    // Converters leave the window out, and readers of this architecture see everything.
    let window = &config["sliding_window"];
    would_be["model_type"] = config["model_type"].clone();
    would_be["sliding_window"] = window.clone();
    if arch.gguf == "llama" && source.computes_otherwise(&would_be)?.is_none() {
        notes.push(format!(
            "readers of GGUF files know no window of {window} tokens here: longer texts come out otherwise"
        ));
        return Ok(());
    }
    Err(Error::unsupported(format!("readers of GGUF files would compute otherwise: {what}")))
}

/// What the GGUF file said that the model came from.
fn kept_header(source: &Source) -> Result<Option<(Header, u64)>> {
    let Some(files) = source.files().filter(|files| files.contains(HEADER)) else {
        return Ok(None);
    };
    let bytes = files.read(HEADER)?;
    let header = Header::read_alone(&bytes).in_file(&files.path(HEADER))?;
    let size = bytes.get(header.bytes().len()..).and_then(|rest| rest.first_chunk());
    let size = size.map_or(header.file_size(), |size| u64::from_le_bytes(*size));
    Ok(Some((header, size)))
}

/// All tensors of the file, by name.
fn entries(
    job: &Convert<'_>,
    source: &Source,
    arch: Option<&Arch>,
    kept: Option<&Header>,
    ty: Option<Type>,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<String, Entry>> {
    let checkpoint = source.checkpoint();
    let part = |name: &str| {
        name.match_indices('.').any(|(at, _)| source.trees().contains_key(&name[..at]))
    };
    let plain = checkpoint.names().filter(|name| !part(name)).map(str::to_owned);
    let mut names: Vec<String> = source.trees().keys().cloned().chain(plain).collect();
    names.sort();
    let mut experts: BTreeMap<String, BTreeMap<usize, String>> = BTreeMap::new();
    let (mut entries, mut left) = (BTreeMap::new(), Vec::new());
    for name in names {
        job.check_cancelled()?;
        let found = arch.and_then(|arch| arch.to_file(&name));
        let (place, expert) = match found {
            // One matrix for both, which checkpoints may call the head.
            Some((place, _)) if place.name == "output.weight" && only_head(source) => {
                (Place::same("token_embd.weight"), None)
            }
            Some(found) => found,
            None if kept.is_some_and(|header| header.tensor(&name).is_some()) => {
                (Place::same(&name), None)
            }
            None if is_said(&name) => continue,
            None if is_head_of_bert(&name) => {
                left.push(name);
                continue;
            }
            None => {
                let what = "has no name in GGUF files of this architecture";
                return Err(Error::unsupported(what).in_tensor(name));
            }
        };
        if let Some(expert) = expert {
            experts.entry(place.name.clone()).or_default().insert(expert, name);
            continue;
        }
        let known = kept.and_then(|header| header.tensor(&place.name));
        let entry = entry(job, source, vec![name.clone()], place, known, ty, notes);
        let (name, entry) = entry.in_tensor(&name)?;
        entries.insert(name, entry);
    }
    for (full, parts) in experts {
        if parts.keys().copied().ne(0..parts.len()) {
            return Err(Error::insufficient("an expert is missing").in_tensor(full));
        }
        let from: Vec<String> = parts.into_values().collect();
        let arch = arch.expect("experts have an architecture");
        let Some((place, _)) = arch.to_file(&from[0]) else { continue };
        let known = kept.and_then(|header| header.tensor(&full));
        let first = from[0].clone();
        let (name, entry) = entry(job, source, from, place, known, ty, notes).in_tensor(&first)?;
        entries.insert(name, entry);
    }
    if !left.is_empty() {
        notes.push(format!("left out, as files have no place for them: {}", left.join(", ")));
    }
    Ok(entries)
}

/// Whether embedding and head are one matrix, which is stored as the head alone.
fn only_head(source: &Source) -> bool {
    let there =
        |name: &str| source.checkpoint().contains(name) || source.trees().contains_key(name);
    let names = ["model.embed_tokens.weight", "embed_tokens.weight"];
    source.config().tied && !names.iter().any(|name| there(name))
}

/// Tensors that say nothing that the config does not say.
fn is_said(name: &str) -> bool {
    let ends = ["rotary_emb.inv_freq", "embeddings.position_ids", ".attention.bias", "masked_bias"];
    let factors = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];
    ends.iter().any(|end| name.ends_with(end)) || factors.contains(&name)
}

/// Heads and poolers, which files of encoders have no place for.
fn is_head_of_bert(name: &str) -> bool {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    name.starts_with("cls.") || name.starts_with("pooler.")
}

/// What a tensor becomes.
fn entry(
    job: &Convert<'_>,
    source: &Source,
    from: Vec<String>,
    place: Place,
    known: Option<&TensorInfo>,
    ty: Option<Type>,
    notes: &mut Vec<String>,
) -> Result<(String, Entry)> {
    let name = &from[0];
    let shape: Vec<usize> = match (source.trees().get(name), source.checkpoint().shape(name)) {
        (None, Some(shape)) => shape.to_vec(),
        _ => source.weight(name)?.shape().to_vec(),
    };
    let mut dims: Vec<u64> = shape.iter().rev().map(|length| *length as u64).collect();
    if place.experts {
        dims.push(from.len() as u64);
    }
    let matrix = shape.len() >= 2 && !place.name.contains("norm");
    let router = place.name.contains("ffn_gate_inp");
    let cols = shape.last().copied().unwrap_or(1);
    let fit = if !matrix || router && ty.is_some() {
        // As converters have it; and as the file had it.
        match known.map(|info| info.type_id) {
            Some(1) => Fit::Blocks(Type::F16),
            Some(30) => Fit::Blocks(Type::BF16),
            _ => Fit::F32,
        }
    } else if let Some(ty) = ty {
        let ty = if is_head(&place.name) { of_head(ty) } else { ty };
        let fit = fallback(ty, cols);
        if fit != Fit::Blocks(ty) {
            notes.push(format!(
                "`{}` is {}: blocks of {} do not divide its rows of {cols}",
                place.name,
                fit.name(),
                ty.name()
            ));
        }
        let quantised = source.trees().contains_key(name);
        let same = quantised && fitting(&*source.weight(name)?).is_ok_and(|found| found == fit);
        if quantised && !same && !job.requantize {
            let what = format!(
                "is quantised already, and not {}: convert without a type, or requantise",
                fit.name()
            );
            return Err(Error::unsupported(what));
        }
        fit
    } else {
        let mut fits = from.iter().map(|name| {
            let node = source.weight(name)?;
            let found = match fitting(&*node) {
                Err(e) if e.kind() == ErrorKind::Unsupported && job.requantize => {
                    nearest(&*node, cols)
                }
                found => found,
            };
            found.in_tensor(name)
        });
        let first = fits.next().expect("at least one")?;
        for other in fits {
            if other? != first {
                let what = "experts' matrices are of different types, and one tensor of the file";
                return Err(Error::unsupported(what));
            }
        }
        first
    };
    source.checkpoint().release();
    Ok((place.name.clone(), Entry { from, place, dims, fit }))
}

/// The type of as many bits that loses least of what no type holds.
fn nearest(node: &dyn Node, cols: usize) -> Result<Fit> {
    let ty = match Survey::of(node)?.map(|survey| survey.bits) {
        Some(..=4) => Type::Q4_1,
        Some(5) => Type::Q5_1,
        _ => Type::Q8_0,
    };
    Ok(fallback(ty, cols))
}

/// What turns states into logits, or tokens into states.
fn is_head(name: &str) -> bool {
    matches!(name, "output.weight" | "token_embd.weight")
}

/// The type of embedding and head, which more depends on: at least 6 bits.
fn of_head(ty: Type) -> Type {
    let bits = 8.0 * ty.block_bytes() as f64 / ty.block_len() as f64;
    if bits < 6.5 { Type::Q6_K } else { ty }
}

/// `general.file_type`: the number of what most bytes are.
fn file_type(entries: &BTreeMap<String, Entry>, ty: Option<Type>) -> u32 {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for entry in entries.values().filter(|entry| entry.dims.len() > 1) {
        *counts.entry(entry.fit.name()).or_default() += entry.dims.iter().product::<u64>();
    }
    let most = counts.iter().max_by_key(|(_, count)| **count).map_or("F32", |(name, _)| name);
    match ty.map_or(most, Type::name) {
        "F32" => 0,
        "F16" => 1,
        "Q4_0" => 2,
        "Q4_1" => 3,
        "Q8_0" => 7,
        "Q5_0" => 8,
        "Q5_1" => 9,
        "Q2_K" => 10,
        "Q3_K" => 12,
        "Q4_K" => 15,
        "Q5_K" => 17,
        "Q6_K" => 18,
        "IQ2_XXS" => 19,
        "IQ2_XS" => 20,
        "IQ3_XXS" => 23,
        "IQ1_S" => 24,
        "IQ4_NL" => 25,
        "IQ3_S" => 26,
        "IQ2_S" => 28,
        "IQ4_XS" => 30,
        "IQ1_M" => 31,
        "BF16" => 32,
        "TQ1_0" => 36,
        "TQ2_0" => 37,
        "MXFP4" => 38,
        // What has no number of its own is guessed by readers from the tensors.
        _ => 1024,
    }
}

/// Whether a file's tensors are these, of whatever types.
fn has_tensors(header: &Header, entries: &BTreeMap<String, Entry>) -> bool {
    let same =
        |info: &TensorInfo| entries.get(&info.name).is_some_and(|entry| entry.dims == info.dims);
    header.tensors().len() == entries.len() && header.tensors().iter().all(same)
}

/// Names in the order of a file: as it was, or embeddings first, then block after block.
fn order(kept: Option<&Header>, entries: &BTreeMap<String, Entry>) -> Vec<String> {
    let mut names: Vec<String> = entries.keys().cloned().collect();
    let before = |name: &str| {
        kept.and_then(|header| header.tensors().iter().position(|info| info.name == name))
    };
    let natural = |name: &str| {
        let block = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
        match block {
            Some(block) => (1, block),
            None if name.starts_with("output") => (2, 0u64),
            None => (0, 0),
        }
    };
    names.sort_by_key(|name| (before(name).unwrap_or(usize::MAX), natural(name), name.clone()));
    names
}

fn new_metadata(
    job: &Convert<'_>,
    source: &Source,
    arch: &Arch,
    out: &Path,
    file_type: u32,
    notes: &mut Vec<String>,
) -> Result<(Metadata, Factors)> {
    // A folder of unfinished work is no model's name.
    let folder = source.folder().filter(|_| job.folder.is_none());
    let named = folder.and_then(Path::file_name).or(out.file_stem());
    let name = named.unwrap_or_default().to_string_lossy();
    let (mut metadata, made) = metadata_of(source.raw_config(), arch, &name, file_type)?;
    let vocab = source.config().vocab;
    let in_memory = source.tokenizer_files();
    let read = |name: &str| -> Result<Option<Vec<u8>>> {
        match source.files() {
            Some(files) if files.contains(name) => Ok(Some(files.read(name)?.to_vec())),
            Some(_) => Ok(None),
            None => {
                let found = in_memory.iter().find(|(file, _)| *file == name);
                Ok(found.map(|(_, bytes)| bytes.to_vec()))
            }
        }
    };
    let Some(text) = read("tokenizer.json")? else {
        notes.push("the model has no tokenizer.json: the file has no tokens".to_owned());
        metadata.push(("tokenizer.ggml.model".to_owned(), Value::String("no_vocab".to_owned())));
        let key = format!("{}.vocab_size", arch.gguf);
        if !metadata.iter().any(|(known, _)| *known == key) {
            metadata.push((key, Value::U32(vocab as u32)));
        }
        return Ok((metadata, made));
    };
    let config = read("tokenizer_config.json")?;
    let said = tokenizer::from_hugging_face(&text, config.as_deref(), vocab)?;
    // What the model's own config says of its tokens is not lost where the tokenizer's says nothing.
    let config = source.config();
    let tokens = [("bos", config.bos), ("eos", config.eos.first().copied())];
    let there = |key: &str| said.iter().any(|(known, _)| known == key);
    let extra: Vec<(String, Value)> = tokens
        .into_iter()
        .filter_map(|(name, id)| Some((format!("tokenizer.ggml.{name}_token_id"), Value::U32(id?))))
        .filter(|(key, _)| !there(key))
        .collect();
    metadata.extend(said);
    metadata.extend(extra);
    Ok((metadata, made))
}
