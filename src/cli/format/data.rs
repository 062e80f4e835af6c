//! Values as templates see them: like JSON, but that fields have an order and are told from keys.
//!
//! Go's templates print a struct, a map and a missing field each in its own way, and `docker … --format` shows it. So a
//! value is taken from its `Serialize` as it is, not by way of JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use serde::ser::{self, SerializeMap, SerializeSeq, SerializeStruct, SerializeTuple};

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Nothing: JSON's null.
    Null,
    /// A field that its struct leaves out when it is empty.
    Absent,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Another one.
    Float(f64),
    /// A text.
    Text(String),
    /// Values in order.
    List(Vec<Data>),
    /// Values by key.
    Map(BTreeMap<String, Data>),
    /// Fields in order.
    Struct(Vec<(String, Data)>),
    /// A field that is asked with a key, `{{.Label "team"}}`: Go's method. It is in no output by itself.
    Lookup(BTreeMap<String, Data>),
    /// The same in a heading: a key is called after its last part.
    LookupHeading,
}

/// Texts by key that templates ask with `{{.Field "key"}}` and JSON does not show.
#[derive(Clone, Debug, Default)]
pub struct Lookup(pub BTreeMap<String, String>);

/// What a [`Lookup`] is called on its way.
const LOOKUP: &str = "$tapway::Lookup";

impl Serialize for Lookup {
    fn serialize<S: ser::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(LOOKUP, &self.0)
    }
}

impl Data {
    /// Takes a value.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, NotData> {
        value.serialize(Taker)
    }

    /// What Go counts as true.
    pub fn truth(&self) -> bool {
        match self {
            Data::Null | Data::Absent => false,
            Data::Bool(value) => *value,
            Data::Int(value) => *value != 0,
            Data::Float(value) => *value != 0.0,
            Data::Text(text) => !text.is_empty(),
            Data::List(items) => !items.is_empty(),
            Data::Map(entries) => !entries.is_empty(),
            Data::Struct(_) | Data::Lookup(_) | Data::LookupHeading => true,
        }
    }

    /// As Go prints it (`%v`).
    pub fn go(&self) -> String {
        match self {
            Data::Null => "<nil>".to_owned(),
            Data::Absent | Data::Lookup(_) | Data::LookupHeading => String::new(),
            Data::Bool(value) => value.to_string(),
            Data::Int(value) => value.to_string(),
            Data::Float(value) => value.to_string(),
            Data::Text(text) => text.clone(),
            Data::List(items) => format!("[{}]", items.iter().map(Data::go).collect::<Vec<_>>().join(" ")),
            Data::Map(entries) => {
                let entries: Vec<String> = entries.iter().map(|(key, value)| format!("{key}:{}", value.go())).collect();
                format!("map[{}]", entries.join(" "))
            }
            Data::Struct(fields) => {
                format!("{{{}}}", fields.iter().map(|(_, value)| value.go()).collect::<Vec<_>>().join(" "))
            }
        }
    }

    /// As JSON, in one line.
    pub fn json(&self) -> String {
        let mut text = String::new();
        self.write_json(&mut text);
        text
    }

    fn write_json(&self, out: &mut String) {
        fn object<'a>(out: &mut String, entries: impl Iterator<Item = (&'a String, &'a Data)>) {
            out.push('{');
            let mut first = true;
            let shown = |value: &Data| !matches!(value, Data::Absent | Data::Lookup(_) | Data::LookupHeading);
            for (key, value) in entries.filter(|(_, value)| shown(value)) {
                if !std::mem::take(&mut first) {
                    out.push(',');
                }
                out.push_str(&quoted(key));
                out.push(':');
                value.write_json(out);
            }
            out.push('}');
        }
        // Writing to a String cannot fail.
        let _ = match self {
            Data::Null | Data::Absent | Data::Lookup(_) | Data::LookupHeading => write!(out, "null"),
            Data::Bool(value) => write!(out, "{value}"),
            Data::Int(value) => write!(out, "{value}"),
            Data::Float(value) => write!(out, "{value}"),
            Data::Text(text) => write!(out, "{}", quoted(text)),
            Data::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    item.write_json(out);
                }
                write!(out, "]")
            }
            Data::Map(entries) => {
                object(out, entries.iter());
                Ok(())
            }
            Data::Struct(fields) => {
                object(out, fields.iter().map(|(key, value)| (key, value)));
                Ok(())
            }
        };
    }
}

/// A text as JSON has it.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A value that templates cannot have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotData(String);

impl ser::Error for NotData {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Makes values.
struct Taker;

/// Makes lists.
struct List(Vec<Data>);

/// Makes maps.
struct Map(BTreeMap<String, Data>, String);

/// Makes structs.
struct Fields(Vec<(String, Data)>);

impl ser::Serializer for Taker {
    type Ok = Data;
    type Error = NotData;
    type SerializeSeq = List;
    type SerializeTuple = List;
    type SerializeTupleStruct = ser::Impossible<Data, NotData>;
    type SerializeTupleVariant = ser::Impossible<Data, NotData>;
    type SerializeMap = Map;
    type SerializeStruct = Fields;
    type SerializeStructVariant = ser::Impossible<Data, NotData>;

    fn serialize_bool(self, value: bool) -> Result<Data, NotData> {
        Ok(Data::Bool(value))
    }
    fn serialize_i8(self, value: i8) -> Result<Data, NotData> {
        Ok(Data::Int(value.into()))
    }
    fn serialize_i16(self, value: i16) -> Result<Data, NotData> {
        Ok(Data::Int(value.into()))
    }
    fn serialize_i32(self, value: i32) -> Result<Data, NotData> {
        Ok(Data::Int(value.into()))
    }
    fn serialize_i64(self, value: i64) -> Result<Data, NotData> {
        Ok(Data::Int(value.into()))
    }
    fn serialize_u8(self, value: u8) -> Result<Data, NotData> {
        Ok(Data::Int(value.into()))
    }
    fn serialize_u16(self, value: u16) -> Result<Data, NotData> {
        Ok(Data::Int(value.into()))
    }
    fn serialize_u32(self, value: u32) -> Result<Data, NotData> {
        Ok(Data::Int(value.into()))
    }
    fn serialize_u64(self, value: u64) -> Result<Data, NotData> {
        Ok(Data::Int(value.into()))
    }
    fn serialize_f32(self, value: f32) -> Result<Data, NotData> {
        Ok(Data::Float(value.into()))
    }
    fn serialize_f64(self, value: f64) -> Result<Data, NotData> {
        Ok(Data::Float(value))
    }
    fn serialize_char(self, value: char) -> Result<Data, NotData> {
        Ok(Data::Text(value.to_string()))
    }
    fn serialize_str(self, value: &str) -> Result<Data, NotData> {
        Ok(Data::Text(value.to_owned()))
    }
    fn serialize_bytes(self, value: &[u8]) -> Result<Data, NotData> {
        Ok(Data::List(value.iter().map(|&byte| Data::Int(byte.into())).collect()))
    }
    fn serialize_none(self) -> Result<Data, NotData> {
        Ok(Data::Null)
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Data, NotData> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<Data, NotData> {
        Ok(Data::Null)
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<Data, NotData> {
        Ok(Data::Null)
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<Data, NotData> {
        Ok(Data::Text(variant.to_owned()))
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result<Data, NotData> {
        match (name, value.serialize(self)?) {
            (LOOKUP, Data::Map(entries)) => Ok(Data::Lookup(entries)),
            (_, value) => Ok(value),
        }
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Data, NotData> {
        Ok(Data::Map([(variant.to_owned(), Data::of(value)?)].into()))
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<List, NotData> {
        Ok(List(Vec::new()))
    }
    fn serialize_tuple(self, _: usize) -> Result<List, NotData> {
        Ok(List(Vec::new()))
    }
    fn serialize_tuple_struct(self, name: &'static str, _: usize) -> Result<Self::SerializeTupleStruct, NotData> {
        Err(NotData(format!("{name} is no value of a template")))
    }
    fn serialize_tuple_variant(
        self,
        name: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, NotData> {
        Err(NotData(format!("{name} is no value of a template")))
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Map, NotData> {
        Ok(Map(BTreeMap::new(), String::new()))
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields, NotData> {
        Ok(Fields(Vec::new()))
    }
    fn serialize_struct_variant(
        self,
        name: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, NotData> {
        Err(NotData(format!("{name} is no value of a template")))
    }
}

impl SerializeSeq for List {
    type Ok = Data;
    type Error = NotData;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotData> {
        self.0.push(Data::of(value)?);
        Ok(())
    }
    fn end(self) -> Result<Data, NotData> {
        Ok(Data::List(self.0))
    }
}

impl SerializeTuple for List {
    type Ok = Data;
    type Error = NotData;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotData> {
        SerializeSeq::serialize_element(self, value)
    }
    fn end(self) -> Result<Data, NotData> {
        SerializeSeq::end(self)
    }
}

impl SerializeMap for Map {
    type Ok = Data;
    type Error = NotData;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), NotData> {
        self.1 = Data::of(key)?.go();
        Ok(())
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotData> {
        self.0.insert(std::mem::take(&mut self.1), Data::of(value)?);
        Ok(())
    }
    fn end(self) -> Result<Data, NotData> {
        Ok(Data::Map(self.0))
    }
}

impl SerializeStruct for Fields {
    type Ok = Data;
    type Error = NotData;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), NotData> {
        self.0.push((key.to_owned(), Data::of(value)?));
        Ok(())
    }
    fn skip_field(&mut self, key: &'static str) -> Result<(), NotData> {
        self.0.push((key.to_owned(), Data::Absent));
        Ok(())
    }
    fn end(self) -> Result<Data, NotData> {
        Ok(Data::Struct(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Sample {
        name: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        range: Option<u8>,
        labels: BTreeMap<&'static str, &'static str>,
        list: Vec<(u8, bool)>,
        nothing: Option<u8>,
    }

    #[test]
    fn structs_maps_and_what_is_left_out() {
        let labels = [("b", "2\n"), ("a", "1")].into();
        let data =
            Data::of(&Sample { name: "x", range: None, labels, list: vec![(1, true), (2, false)], nothing: None })
                .unwrap();
        assert_eq!(data.go(), "{x  map[a:1 b:2\n] [[1 true] [2 false]] <nil>}");
        assert_eq!(
            data.json(),
            r#"{"name":"x","labels":{"a":"1","b":"2\n"},"list":[[1,true],[2,false]],"nothing":null}"#
        );
        assert_eq!(Data::of(&1.5).unwrap().json(), "1.5");
        assert_eq!(Data::of(&Some(u64::MAX)).unwrap(), Data::Int(u64::MAX.into()));
    }
}
