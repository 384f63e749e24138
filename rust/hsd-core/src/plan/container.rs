//! The bytes of a plan file as text and arrays: a safetensors file, read with the checks that a file from anywhere needs.
//!
//! A general reader has to take any number of arrays of any name before it can say what is wrong. A plan has eight, so
//! this one stops at the first name that is none of theirs, and needs time and memory in proportion to the header only.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, Result};

/// Key of the header's JSON entry. One entry holds everything, because the header's map has no fixed order.
pub(super) const KEY: &str = "hsd";

/// The key under which safetensors keeps entries that are no arrays.
const ENTRIES: &str = "__metadata__";

/// The longest header, in bytes: the limit of the safetensors library too.
pub const MOST_HEADER: u64 = 100_000_000;

/// The arrays with their types, in the order in which the digest takes them.
pub(super) const ARRAYS: [(&str, Dtype); 8] = [
    ("kept", Dtype::I64),
    ("merges", Dtype::I64),
    ("phi", Dtype::F64),
    ("prompt_bytes", Dtype::U8),
    ("prompt_ends", Dtype::I64),
    ("scores", Dtype::F64),
    ("seeds", Dtype::I64),
    ("segments", Dtype::I32),
];

pub(super) fn bad(why: impl Into<String>) -> Error {
    Error::BadFile(why.into())
}

/// The types of safetensors that a plan uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dtype {
    /// Bytes.
    U8,
    /// 32-bit integers.
    I32,
    /// 64-bit integers.
    I64,
    /// 64-bit floats.
    F64,
}

impl Dtype {
    fn bytes(self) -> u64 {
        match self {
            Dtype::U8 => 1,
            Dtype::I32 => 4,
            Dtype::I64 | Dtype::F64 => 8,
        }
    }
}

/// One array of a file: its shape, whose axes nothing has counted yet, and its bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawArray<'a> {
    name: &'static str,
    shape: &'a [u64],
    /// As many bytes as the shape says.
    pub data: &'a [u8],
}

impl<'a> RawArray<'a> {
    /// Its bytes, if it has one axis.
    pub fn vector(&self) -> Result<&'a [u8]> {
        match self.shape {
            [_] => Ok(self.data),
            shape => Err(bad(format!("{} has {}, but one axis is needed", self.name, shown(shape)))),
        }
    }

    /// Checks that it has two axes, the second of length `columns`.
    pub fn table(&self, columns: u64) -> Result<()> {
        match *self.shape {
            [_, found] if found == columns => Ok(()),
            ref shape => Err(bad(format!("{} has {}, but (rows, {columns}) is needed", self.name, shown(shape)))),
        }
    }
}

/// A shape for a message, however many axes it has.
fn shown(shape: &[u64]) -> String {
    if shape.len() > 8 {
        return format!("{} axes", shape.len());
    }
    format!("shape {shape:?}")
}

/// The header of a plan file: the text of its one entry, and where its arrays are.
pub(super) struct Header {
    entry: String,
    arrays: [Place; 8],
    /// Bytes before the first array.
    begin: u64,
    /// Bytes of the whole file.
    end: u64,
}

impl Header {
    /// Reads the header of the file that begins with `head`, which has to hold all of it.
    pub fn read(head: &[u8]) -> Result<Self> {
        let Some((size, rest)) = head.split_first_chunk::<8>() else {
            return Err(bad(format!("it has {} bytes, and a plan has more", head.len())));
        };
        let size = u64::from_le_bytes(*size);
        if size > MOST_HEADER {
            return Err(bad("it does not begin with the length of a header; it may be some other file"));
        }
        let text = rest.get(..size as usize).ok_or_else(|| bad("it ends within its header"))?;
        let Fields { entry, arrays } =
            serde_json::from_slice(text).map_err(|error| bad(format!("its header: {error}")))?;
        let entry = entry.ok_or_else(|| bad("it has no \"hsd\" entry; it may be some other safetensors file"))?;
        let mut places = [const { None }; 8];
        for ((slot, place), (name, dtype)) in places.iter_mut().zip(arrays).zip(ARRAYS) {
            let place = place.ok_or_else(|| bad(format!("it has no array {name}")))?;
            place.check(name, dtype)?;
            *slot = Some(place);
        }
        let [Some(a), Some(b), Some(c), Some(d), Some(e), Some(f), Some(g), Some(h)] = places else {
            return Err(bad("arrays are missing"));
        };
        let arrays = [a, b, c, d, e, f, g, h];
        let begin = 8 + size;
        let end = begin.checked_add(tiled(&arrays)?).ok_or_else(|| bad("its arrays are larger than any file"))?;
        Ok(Header { entry, arrays, begin, end })
    }

    /// The text of the entry.
    pub fn entry(&self) -> &str {
        &self.entry
    }

    /// Bytes of the whole file.
    pub fn file_size(&self) -> u64 {
        self.end
    }

    /// The arrays in the file `data`, in the order of [`ARRAYS`].
    pub fn arrays<'a>(&'a self, data: &'a [u8]) -> Result<[RawArray<'a>; 8]> {
        if data.len() as u64 != self.end {
            return Err(bad(format!("it has {} bytes, but its header describes {}", data.len(), self.end)));
        }
        let mut index = 0;
        Ok(self.arrays.each_ref().map(|place| {
            let (name, _) = ARRAYS[index];
            index += 1;
            let [from, to] = place.data_offsets.map(|offset| (self.begin + offset) as usize);
            RawArray { name, shape: &place.shape, data: &data[from..to] }
        }))
    }
}

/// How many bytes the arrays have together; an error unless they follow each other without a gap or an overlap.
fn tiled(arrays: &[Place; 8]) -> Result<u64> {
    let mut order: [usize; 8] = std::array::from_fn(|index| index);
    order.sort_by_key(|&index| arrays[index].data_offsets);
    let mut end = 0;
    for index in order {
        let [from, to] = arrays[index].data_offsets;
        if from != end {
            let name = ARRAYS[index].0;
            return Err(bad(format!("{name} begins at byte {from}, but the array before it ends at {end}")));
        }
        end = to;
    }
    Ok(end)
}

/// What the header says of an array.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl Place {
    fn check(&self, name: &str, dtype: Dtype) -> Result<()> {
        if self.dtype != format!("{dtype:?}") {
            let found: String = self.dtype.chars().take(16).collect();
            return Err(bad(format!("{name} has type {found}, but {dtype:?} is needed")));
        }
        let [from, to] = self.data_offsets;
        let size = self.shape.iter().try_fold(dtype.bytes(), |size, &length| size.checked_mul(length));
        if size.is_none() || size != to.checked_sub(from) {
            let shape = shown(&self.shape);
            return Err(bad(format!("{name} has {shape}, which does not fill bytes {from} to {to}")));
        }
        Ok(())
    }
}

/// The header's map, each known key at most once.
struct Fields {
    entry: Option<String>,
    arrays: [Option<Place>; 8],
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the header of a safetensors file")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Fields, A::Error> {
        let mut fields = Fields { entry: None, arrays: [const { None }; 8] };
        let mut entries = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == ENTRIES {
                if std::mem::replace(&mut entries, true) {
                    return Err(A::Error::custom("it has two lists of entries"));
                }
                fields.entry = map.next_value::<Entries>()?.0;
                continue;
            }
            let Some(index) = ARRAYS.iter().position(|(name, _)| *name == key) else {
                let name: String = key.chars().take(32).collect();
                return Err(A::Error::custom(format!(
                    "it has an array {name:?}, which no plan has; it may be some other safetensors file"
                )));
            };
            if fields.arrays[index].is_some() {
                return Err(A::Error::custom(format!("it has two arrays {key}")));
            }
            fields.arrays[index] = Some(map.next_value()?);
        }
        Ok(fields)
    }
}

/// The text of the entry [`KEY`], which is in the map at most once. Other programs may add entries of their own.
struct Entries(Option<String>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a map of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries, A::Error> {
        let mut entry = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != KEY {
                map.next_value::<IgnoredAny>()?;
            } else if entry.is_some() {
                return Err(A::Error::custom("it has two entries \"hsd\""));
            } else {
                entry = Some(map.next_value::<String>()?);
            }
        }
        Ok(Entries(entry))
    }
}
