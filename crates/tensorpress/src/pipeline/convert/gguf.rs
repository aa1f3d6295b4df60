//! Conversions to a GGUF file.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tensorpress_formats::export::{Fit, Survey, as_blocks, fallback, fitting};
use tensorpress_formats::ggml::{self, Type};
use tensorpress_formats::gguf::model::{
    Arch, Factors, HEADER, Metadata, Paired, Place, config_of, is_gguf, metadata_of, pairs,
};
use tensorpress_formats::gguf::{Header, TensorInfo, Value, tokenizer};
use tensorpress_model::Source;
use tensorpress_tensor::checkpoint::{name_file, refuse_mount_point};
use tensorpress_tensor::node::decode;
use tensorpress_tensor::{Context as _, DType, Error, ErrorKind, Node, Result, Tensor};

use super::{ConversionReport, Convert, Converted, Event, layers};
use crate::pipeline::folder::Work;
use crate::pipeline::listing::UNFINISHED_GGUF;
use crate::pipeline::state::{Identity, Unit};

/// A tensor of the file: what it is made of.
struct Entry {
    /// Names in the source; of experts' matrices, all of them in order.
    from: Vec<String>,
    place: Place,
    /// Lengths in the file's order.
    dims: Vec<u64>,
    fit: Fit,
}

pub(super) fn convert(
    job: &mut Convert<'_>,
    source: &Source,
    out: &Path,
    ty: Option<Type>,
) -> Result<ConversionReport> {
    check_target(out, source, job.force)?;
    let plan = Plan::new(job, source, out, ty)?;
    let identity = Identity::of_job(source, job.identity()?)?;
    let mut work = Work::open(out, identity, source.checkpoint(), job.force)?;
    let done = write(job, source, out, &plan, &mut work);
    let mut report = work.ended(done)?;
    report.notes.extend(plan.notes);
    Ok(report)
}

/// Whether a file may go to `out`.
fn check_target(out: &Path, source: &Source, force: bool) -> Result<()> {
    if out.file_name().is_none() {
        return Err(Error::invalid("is no name for a new file").in_file(out));
    }
    let Ok(found) = fs::symlink_metadata(out) else { return Ok(()) };
    refuse_mount_point(out)?;
    if !force {
        return Err(Error::exists("exists already").in_file(out));
    }
    if !found.is_file() || !is_gguf(out) {
        return Err(Error::invalid("is no GGUF file; not replaced").in_file(out));
    }
    let real = |path: &Path| path.canonicalize().ok();
    let target = real(out);
    if source.checkpoint().files().any(|path| real(path) == target) {
        return Err(Error::invalid("is the model to convert; write elsewhere").in_file(out));
    }
    Ok(())
}

/// Everything that is found out before the first byte is written.
struct Plan {
    header: Header,
    /// Length of the file.
    size: u64,
    entries: BTreeMap<String, Entry>,
    /// Values of tensors that are made of the config.
    made: BTreeMap<String, Vec<f32>>,
    notes: Vec<String>,
}

impl Plan {
    fn new(job: &Convert<'_>, source: &Source, out: &Path, ty: Option<Type>) -> Result<Self> {
        let (kept, size) = kept_header(source)?.unzip();
        let kind = source.raw_config()["model_type"].as_str().unwrap_or_default();
        let arch = Arch::of_folder(kind);
        if arch.is_none() && kept.is_none() {
            let known: Vec<&str> = Arch::all().map(|arch| arch.kind).collect();
            return Err(Error::unsupported(format!(
                "`model_type` = `{kind}`: architectures with names in GGUF files are {}",
                known.join(", ")
            )));
        }
        let mut notes = Vec::new();
        let mut entries = entries(job, source, arch, kept.as_ref(), ty, &mut notes)?;
        let file_type = file_type(&entries, ty);
        let (metadata, made) = match &kept {
            Some(header) => (with_type(header, &entries, file_type), Vec::new()),
            None => {
                let arch = arch.expect("known, or there is a header");
                new_metadata(source, arch, out, file_type, &mut notes)?
            }
        };
        let made: BTreeMap<String, Vec<f32>> =
            made.into_iter().filter(|(name, _)| !entries.contains_key(name)).collect();
        for (name, values) in &made {
            let place = Place::same(name);
            let (dims, fit) = (vec![values.len() as u64], Fit::F32);
            entries.insert(name.clone(), Entry { from: Vec::new(), place, dims, fit });
        }
        let (header, size) = match &kept {
            // Whether the last tensor was filled up is the file's own way.
            Some(header) if is_same(header, &entries) => {
                (header.clone(), size.unwrap_or(0).min(header.file_size()))
            }
            _ => {
                let names = order(kept.as_ref(), &entries);
                let tensor = |name: String| {
                    let entry = &entries[&name];
                    let (dims, id) = (entry.dims.clone(), entry.fit.id());
                    (name, dims, id)
                };
                let header = Header::new(metadata, names.into_iter().map(tensor))?;
                let size = header.file_size();
                (header, size)
            }
        };
        if kept.is_none() {
            // What files have no words for is found by reading what they would say.
            let mut would_be = config_of(&header, &made)?;
            // The same stretches, in other words.
            if source.raw_config().to_string().contains("\"llama3\"") {
                for key in ["rope_scaling", "rope_parameters", "rope_theta"] {
                    would_be[key] = source.raw_config()[key].clone();
                }
            }
            let mut otherwise = source.computes_otherwise(&would_be)?;
            // Converters leave the window out, and readers of this architecture see everything.
            let window = &source.raw_config()["sliding_window"];
            if otherwise.is_some() && arch.is_some_and(|arch| arch.gguf == "llama") {
                would_be["model_type"] = source.raw_config()["model_type"].clone();
                would_be["sliding_window"] = window.clone();
                let without = source.computes_otherwise(&would_be)?;
                if without.is_none() {
                    otherwise = None;
                    notes.push(format!(
                        "readers of GGUF files know no window of {window} tokens here: longer texts come out otherwise"
                    ));
                }
            }
            if let Some(what) = otherwise {
                return Err(Error::unsupported(format!(
                    "readers of GGUF files would compute otherwise: {what}"
                )));
            }
        }
        Ok(Self { header, size, entries, made, notes })
    }
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
    let mut entries = BTreeMap::new();
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
            None if is_left_out(&name) => continue,
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
fn is_left_out(name: &str) -> bool {
    let ends = ["rotary_emb.inv_freq", "embeddings.position_ids", ".attention.bias", "masked_bias"];
    ends.iter().any(|end| name.ends_with(end))
        || name.starts_with("cls.")
        || name.starts_with("pooler.")
        || name.starts_with("bert.pooler.")
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

/// The metadata of a file, with the type of what it holds now.
fn with_type(
    header: &Header,
    entries: &BTreeMap<String, Entry>,
    file_type: u32,
) -> Vec<(String, Value)> {
    let mut metadata = header.metadata().to_vec();
    if !is_same(header, entries) {
        for (key, value) in &mut metadata {
            if key == "general.file_type" {
                *value = Value::U32(file_type);
            }
        }
    }
    metadata
}

/// Whether a file's tensors are these.
fn is_same(header: &Header, entries: &BTreeMap<String, Entry>) -> bool {
    let same = |info: &TensorInfo| {
        let entry = entries.get(&info.name);
        entry.is_some_and(|entry| entry.fit.id() == info.type_id && entry.dims == info.dims)
    };
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
    source: &Source,
    arch: &Arch,
    out: &Path,
    file_type: u32,
    notes: &mut Vec<String>,
) -> Result<(Metadata, Factors)> {
    let named = source.folder().and_then(Path::file_name).or(out.file_stem());
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

fn write(
    job: &mut Convert<'_>,
    source: &Source,
    out: &Path,
    plan: &Plan,
    work: &mut Work,
) -> Result<ConversionReport> {
    let path = work.folder().join(UNFINISHED_GGUF);
    let mut file = Unfinished::open(&path, work.units())?;
    if file.done < work.units().len() {
        work.forget(file.done)?;
    }
    let header = &plan.header;
    let infos = header.tensors_in_place();
    job.tell(Event::Begun { blocks: infos.len(), resumed: file.done });
    if file.done == 0 {
        file.put(&header.bytes())?;
    }
    let mut pending: Vec<Unit> = Vec::new();
    let mut unsaved = 0;
    for (index, info) in infos.iter().enumerate().skip(file.done) {
        job.check_cancelled()?;
        job.tell(Event::Block { block: index, blocks: infos.len() });
        file.fill_to(header.range(info).start)?;
        let (bytes, converted) = tensor(job, source, plan, info).in_tensor(&info.name)?;
        file.put(&bytes)?;
        unsaved += bytes.len();
        source.checkpoint().release();
        pending.push(Unit { bytes: file.at, layers: Vec::new(), converted });
        if unsaved > SAVE {
            file.sync()?;
            work.finished_all(std::mem::take(&mut pending))?;
            unsaved = 0;
        }
    }
    file.fill_to(plan.size)?;
    file.sync()?;
    work.finished_all(pending)?;
    let mut report = job.report(source);
    report.bytes_after = file.at;
    report.tensors = work.units().iter().flat_map(|unit| unit.converted.clone()).collect();
    drop(file);
    // What is there now is looked at now.
    check_target(out, source, job.force)?;
    name_file(&path, out, job.force)?;
    work.discard()?;
    Ok(report)
}

/// Bytes after which what is done is noted.
const SAVE: usize = 32 << 20;

/// The file that is being written.
struct Unfinished {
    path: PathBuf,
    file: File,
    /// Where the next byte goes.
    at: u64,
    /// Tensors that are in it.
    done: usize,
}

impl Unfinished {
    /// Takes up what is there, as far as it was noted.
    fn open(path: &Path, units: &[Unit]) -> Result<Self> {
        let fail = |e| Error::io("open the file", path, e);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(fail)?;
        let len = file.metadata().map_err(fail)?.len();
        let done = units.iter().take_while(|unit| unit.bytes <= len).count();
        let at = units[..done].last().map_or(0, |unit| unit.bytes);
        file.set_len(at).map_err(fail)?;
        file.seek(SeekFrom::Start(at)).map_err(fail)?;
        Ok(Self { path: path.to_path_buf(), file, at, done })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let path = &self.path;
        self.file.write_all(bytes).map_err(|e| Error::io("write the file", path, e))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn fill_to(&mut self, end: u64) -> Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.at < end {
            let count = (end - self.at).min(ZEROS.len() as u64) as usize;
            self.put(&ZEROS[..count])?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("sync the file", &self.path, e))
    }
}

/// The bytes of a tensor, and what became of what it was made of.
fn tensor(
    job: &Convert<'_>,
    source: &Source,
    plan: &Plan,
    info: &TensorInfo,
) -> Result<(Vec<u8>, Vec<Converted>)> {
    if let Some(values) = plan.made.get(&info.name) {
        return Ok((values.iter().flat_map(|value| value.to_le_bytes()).collect(), Vec::new()));
    }
    let entry = &plan.entries[&info.name];
    let mut all = Vec::with_capacity(info.bytes as usize);
    let mut report = Vec::new();
    let known = job.importance.as_ref().and_then(|known| known.matrices.get(&info.name));
    for (expert, name) in entry.from.iter().enumerate() {
        let importance = known.and_then(|squares| squares.importance(expert));
        let made = one(source, entry, name, importance.as_deref());
        let (bytes, converted) = made.in_tensor(name)?;
        all.extend_from_slice(&bytes);
        report.extend(converted);
    }
    if all.len() as u64 != info.bytes {
        let (is, says) = (all.len(), info.bytes);
        return Err(Error::corruption(format!("{is} bytes, where the header says {says}")));
    }
    Ok((all, report))
}

fn one(
    source: &Source,
    entry: &Entry,
    name: &str,
    importance: Option<&[f32]>,
) -> Result<(Vec<u8>, Option<Converted>)> {
    let stored = source.checkpoint().shape(name);
    if stored.is_some_and(|shape| shape.len() != 2) || entry.place.plus_one {
        return vector(source, entry, name).map(|bytes| (bytes, None));
    }
    let node = source.weight(name)?;
    if let Some(importance) = importance.filter(|known| known.len() != node.shape()[1]) {
        let (is, wanted) = (importance.len(), node.shape()[1]);
        return Err(Error::shape(format!("importance of {is} inputs for {wanted}")));
    }
    let (bytes, error, lossless) = matrix(&*node, entry.fit, importance)?;
    let bytes = match entry.place.paired {
        Some(paired) => moved(source, paired, &bytes, node.shape()[0])?,
        None => bytes,
    };
    let from = match source.trees().get(name) {
        Some(tree) => tree["type"].as_str().or(tree["node"].as_str()).unwrap_or("?").to_owned(),
        None => source.checkpoint().dtype_name(name).unwrap_or("?").to_owned(),
    };
    let (name, to) = (name.to_owned(), entry.fit.name().to_owned());
    Ok((bytes, Some(Converted { name, from, to, lossless, error })))
}

/// Bytes of a matrix in a type, how far it is from what it was, and whether it is that.
fn matrix(
    node: &dyn Node,
    fit: Fit,
    importance: Option<&[f32]>,
) -> Result<(Vec<u8>, Option<f64>, bool)> {
    if fitting(node).is_ok_and(|found| found == fit) {
        return Ok((as_blocks(node)?.1, None, true));
    }
    let weight = decode(node)?;
    let [rows, cols] = node.shape();
    let mut bytes = Vec::new();
    let mut got = weight.clone();
    match fit {
        Fit::F32 => {
            DType::F32.write_f32(weight.as_slice().expect("standard layout"), &mut bytes)?
        }
        Fit::Blocks(ty) => {
            let row = cols / ty.block_len() * ty.block_bytes();
            bytes.resize(rows * row, 0);
            let values = weight.as_slice().expect("standard layout");
            ggml::encode(ty, values, importance, &mut bytes)?;
            ggml::decode(ty, &bytes, got.as_slice_mut().expect("standard layout"))?;
        }
        other => return Err(Error::unsupported(format!("floats as {}", other.name()))),
    }
    let lossless = weight.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits());
    Ok((bytes, if lossless { None } else { layers::relative(&weight, &got) }, lossless))
}

/// Rows of a folder's q or k in the file's order.
fn moved(source: &Source, paired: Paired, bytes: &[u8], rows: usize) -> Result<Vec<u8>> {
    let config = source.config();
    let heads = if paired == Paired::Queries { config.heads } else { config.kv_heads };
    if heads == 0 || !rows.is_multiple_of(2 * heads) {
        return Err(Error::shape(format!("{rows} rows of {heads} heads, which are not in pairs")));
    }
    let width = bytes.len() / rows.max(1);
    let mut out = vec![0; bytes.len()];
    for (row, to) in pairs(rows, heads).into_iter().enumerate() {
        let from = &bytes[row * width..(row + 1) * width];
        out[to * width..(to + 1) * width].copy_from_slice(from);
    }
    Ok(out)
}

/// A vector, or anything else that is no matrix.
fn vector(source: &Source, entry: &Entry, name: &str) -> Result<Vec<u8>> {
    let tensor = source.checkpoint().tensor(name)?;
    let dtype = match entry.fit {
        Fit::Blocks(Type::F16) => DType::F16,
        Fit::Blocks(Type::BF16) => DType::BF16,
        _ => DType::F32,
    };
    if tensor.dtype() == dtype && entry.place.paired.is_none() && !entry.place.plus_one {
        return Ok(tensor.bytes().to_vec());
    }
    if !tensor.dtype().is_float() {
        let what = format!("{} elements have no type here", tensor.dtype().name());
        return Err(Error::unsupported(what));
    }
    let mut values: Vec<f32> = tensor.to_matrix()?.into_raw_vec_and_offset().0;
    if entry.place.plus_one {
        values.iter_mut().for_each(|value| *value += 1.0);
    }
    let mut bytes = Vec::new();
    dtype.write_f32(&values, &mut bytes)?;
    match entry.place.paired {
        Some(paired) => moved(source, paired, &bytes, values.len()),
        None => Ok(bytes),
    }
}
