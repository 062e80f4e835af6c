//! `docs/control-socket.schema.json` is the JSON Schema of the control protocol, made from the types of `src/api/verbs`.
//!
//! The sources are read, not compiled in: the types need no derives that nobody else has a use for, and what stands in
//! their documentation stands in the schema. Of serde's attributes those are understood that are used there; any other
//! fails the test. With `TAPWAY_WRITE_CONTRIB=1` the file is written.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};
use syn::punctuated::Punctuated;
use syn::{Attribute, Expr, Fields, GenericArgument, Item, Lit, Meta, PathArguments, Token, Type};

/// Where types of the protocol are, beside `src/api/verbs`.
const ELSEWHERE: [&str; 5] = [
    "src/api/error.rs",
    "src/api/session.rs",
    "src/network/capture.rs",
    "src/network/config.rs",
    "src/network/desired.rs",
];

/// Verb, its arguments, what it returns. Empty: `{}`.
const VERBS: &[(&str, &str, &str)] = &[
    ("hello", "session::Hello", "session::Welcome"),
    ("publish", "ports::Publish", "ports::Ports"),
    ("unpublish", "ports::Unpublish", "ports::Ports"),
    ("list_ports", "ports::ListPorts", "ports::PortList"),
    ("set_dns", "dns::SetDns", "dns::Dns"),
    ("get_dns", "dns::GetDns", "dns::Dns"),
    ("add_dns_record", "dns::AddDnsRecord", ""),
    ("remove_dns_record", "dns::RemoveDnsRecord", "dns::Removed"),
    ("list_dns_records", "dns::ListDnsRecords", "dns::DnsRecords"),
    ("add_host", "dns::AddHost", ""),
    ("remove_host", "dns::RemoveHost", "dns::Removed"),
    ("list_hosts", "dns::ListHosts", "dns::Hosts"),
    ("list_flows", "observe::ListFlows", "observe::FlowList"),
    ("kill_flow", "observe::KillFlow", ""),
    ("get_stats", "observe::Nothing", "observe::Stats"),
    ("get_metrics", "observe::Nothing", "observe::Metrics"),
    ("set_log_level", "observe::SetLogLevel", ""),
    ("get_info", "observe::Nothing", "observe::NetworkInfo"),
    ("subscribe", "observe::Subscribe", ""),
    ("start_capture", "capture::StartCapture", "capture::CaptureStarted"),
    ("stop_capture", "capture::StopCapture", "capture::CaptureStatus"),
    ("list_captures", "capture::ListCaptures", "capture::CaptureList"),
    ("set_fault", "fault::SetFault", "fault::FaultList"),
    ("clear_fault", "fault::ClearFault", "fault::Cleared"),
    ("list_faults", "fault::ListFaults", "fault::FaultList"),
    ("get_namespaces", "life::GetNamespaces", "life::Namespaces"),
    ("send_signal", "life::SendSignal", ""),
    ("stop", "life::Stop", "life::Stopped"),
    ("connect_network", "connect::ConnectNetwork", "connect::Connected"),
    ("disconnect_network", "connect::DisconnectNetwork", "connect::Disconnected"),
    ("list_members", "observe::Nothing", "network::MemberList"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every type, by `module::Name`.
struct Types(BTreeMap<String, Item>);

impl Types {
    fn read() -> Self {
        let verbs = std::fs::read_dir(root().join("src/api/verbs")).unwrap().map(|entry| entry.unwrap().path());
        let files = verbs.chain(ELSEWHERE.iter().map(|file| root().join(file)));
        let mut types = BTreeMap::new();
        for file in files.filter(|file| file.extension().is_some_and(|e| e == "rs")) {
            let module = file.file_stem().unwrap().to_str().unwrap().to_owned();
            for item in syn::parse_file(&std::fs::read_to_string(&file).unwrap()).unwrap().items {
                let name = match &item {
                    Item::Struct(item) => item.ident.to_string(),
                    Item::Enum(item) => item.ident.to_string(),
                    _ => continue,
                };
                types.insert(format!("{module}::{name}"), item);
            }
        }
        Self(types)
    }

    /// The full name of what `module` calls `name`: its own type, or the only one of that name.
    fn resolve(&self, module: &str, name: &str) -> String {
        let own = format!("{module}::{name}");
        if self.0.contains_key(&own) {
            return own;
        }
        let others: Vec<&String> = self.0.keys().filter(|key| key.ends_with(&format!("::{name}"))).collect();
        assert_eq!(others.len(), 1, "{module} uses {name}, which is one of {others:?}");
        others[0].clone()
    }
}

/// What serde is told.
#[derive(Default)]
struct Serde {
    rename: Option<String>,
    rename_all: Option<String>,
    strict: bool,
    flatten: bool,
    optional: bool,
}

impl Serde {
    fn read(attributes: &[Attribute]) -> Self {
        let mut serde = Self::default();
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
            for meta in attribute.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).unwrap() {
                let name = meta.path().get_ident().unwrap().to_string();
                let text = match &meta {
                    Meta::NameValue(pair) => match &pair.value {
                        Expr::Lit(literal) => match &literal.lit {
                            Lit::Str(text) => Some(text.value()),
                            _ => None,
                        },
                        _ => None,
                    },
                    _ => None,
                };
                match name.as_str() {
                    "rename" => serde.rename = text,
                    "rename_all" => serde.rename_all = text,
                    "deny_unknown_fields" => serde.strict = true,
                    "flatten" => serde.flatten = true,
                    "default" | "skip_serializing_if" => serde.optional = true,
                    // How it is read does not change what it is.
                    "deserialize_with" => {}
                    _ => panic!("serde({name}) is not understood here"),
                }
            }
        }
        serde
    }
}

/// The documentation, in one line; links are shown as what they name.
fn docs(attributes: &[Attribute]) -> Option<String> {
    let lines: Vec<String> = attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("doc"))
        .filter_map(|attribute| match &attribute.meta {
            Meta::NameValue(pair) => match &pair.value {
                Expr::Lit(literal) => match &literal.lit {
                    Lit::Str(text) => Some(text.value().trim().to_owned()),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        })
        .collect();
    let text = lines.join(" ").replace("[`", "`").replace("`]", "`");
    (!text.is_empty()).then_some(text)
}

fn renamed(name: &str, rule: Option<&str>) -> String {
    match rule {
        None => name.to_owned(),
        Some("lowercase") => name.to_lowercase(),
        Some("snake_case") => {
            let mut text = String::new();
            for (i, c) in name.char_indices() {
                if c.is_uppercase() && i > 0 {
                    text.push('_');
                }
                text.extend(c.to_lowercase());
            }
            text
        }
        Some(rule) => panic!("rename_all = {rule} is not understood here"),
    }
}

struct Schema<'a> {
    types: &'a Types,
    definitions: Map<String, Value>,
}

impl Schema<'_> {
    /// A reference to a type, which is then defined.
    fn reference(&mut self, full: &str) -> Value {
        let name = full.replace("::", ".");
        if !self.definitions.contains_key(&name) {
            self.definitions.insert(name.clone(), Value::Null);
            let item = self.types.0.get(full).unwrap_or_else(|| panic!("there is no type {full}"));
            let defined = self.define(full.split("::").next().unwrap(), item);
            self.definitions.insert(name.clone(), defined);
        }
        json!({ "$ref": format!("#/$defs/{name}") })
    }

    fn define(&mut self, module: &str, item: &Item) -> Value {
        let (mut schema, attributes) = match item {
            Item::Struct(item) => (self.object(module, &item.fields, &item.attrs), &item.attrs),
            Item::Enum(item) => {
                let rule = Serde::read(&item.attrs).rename_all;
                let words = item.variants.iter().map(|variant| {
                    assert!(variant.fields.is_empty(), "{} has a variant with fields", item.ident);
                    let name = Serde::read(&variant.attrs).rename;
                    let name = name.unwrap_or_else(|| renamed(&variant.ident.to_string(), rule.as_deref()));
                    json!({ "const": name, "description": docs(&variant.attrs) })
                });
                (json!({ "oneOf": words.collect::<Vec<_>>() }), &item.attrs)
            }
            _ => unreachable!("only these are kept"),
        };
        if let Some(text) = docs(attributes) {
            schema["description"] = text.into();
        }
        schema
    }

    fn object(&mut self, module: &str, fields: &Fields, attributes: &[Attribute]) -> Value {
        let whole = Serde::read(attributes);
        let (mut properties, mut required, mut parts) = (Map::new(), Vec::new(), Vec::new());
        for field in fields {
            let serde = Serde::read(&field.attrs);
            if serde.flatten {
                parts.push(self.value(module, &field.ty));
                continue;
            }
            let name = field.ident.as_ref().unwrap().to_string();
            let name = serde.rename.unwrap_or_else(|| renamed(&name, whole.rename_all.as_deref()));
            // An optional field may be left out; it may be null only if it is optional twice, or is always written.
            let always = !(serde.optional || whole.optional);
            let mut schema = match inner(&field.ty, "Option") {
                Some(inside) if !always => self.value(module, inside),
                _ => self.value(module, &field.ty),
            };
            if let Some(text) = docs(&field.attrs) {
                schema["description"] = text.into();
            }
            properties.insert(name.clone(), schema);
            if always {
                required.push(name);
            }
        }
        let mut schema = json!({ "type": "object", "properties": properties });
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if whole.strict {
            schema["additionalProperties"] = false.into();
        }
        if !parts.is_empty() {
            schema["allOf"] = json!(parts);
        }
        schema
    }

    fn value(&mut self, module: &str, ty: &Type) -> Value {
        if let Some(inside) = inner(ty, "Option") {
            let schema = self.value(module, inside);
            return json!({ "anyOf": [schema, { "type": "null" }] });
        }
        if let Some(inside) = inner(ty, "Vec") {
            let items = self.value(module, inside);
            return json!({ "type": "array", "items": items });
        }
        if let Some(inside) = inner(ty, "BTreeMap") {
            let values = self.value(module, inside);
            return json!({ "type": "object", "additionalProperties": values });
        }
        let Type::Path(path) = ty else { panic!("a type of {module} is not understood") };
        match path.path.segments.last().unwrap().ident.to_string().as_str() {
            "String" => json!({ "type": "string" }),
            "bool" => json!({ "type": "boolean" }),
            "f64" => json!({ "type": "number" }),
            "u8" => json!({ "type": "integer", "minimum": 0, "maximum": u8::MAX }),
            "u16" => json!({ "type": "integer", "minimum": 0, "maximum": u16::MAX }),
            "u32" => json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX }),
            "u64" | "usize" => json!({ "type": "integer", "minimum": 0 }),
            "i32" => json!({ "type": "integer", "minimum": i32::MIN, "maximum": i32::MAX }),
            "Ipv4Addr" => json!({ "type": "string", "format": "ipv4" }),
            "Ipv6Addr" => json!({ "type": "string", "format": "ipv6" }),
            "IpAddr" => json!({ "type": "string", "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }] }),
            name => {
                let full = self.types.resolve(module, name);
                self.reference(&full)
            }
        }
    }
}

/// The last type argument of `outer<…>`.
fn inner<'a>(ty: &'a Type, outer: &str) -> Option<&'a Type> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last()?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    match arguments.args.last()? {
        GenericArgument::Type(inside) if last.ident == outer => Some(inside),
        _ => None,
    }
}

fn generated() -> Value {
    let types = Types::read();
    let mut schema = Schema { types: &types, definitions: Map::new() };
    let mut requests = Vec::new();
    let mut replies = Map::new();
    for &(verb, arguments, result) in VERBS {
        let mut arguments = schema.reference(arguments);
        if tapway::api::verbs::OF_ONE_NETWORK.contains(&verb) {
            arguments = json!({ "anyOf": [arguments, {
                "description": "On a sandbox's socket these, and which of its networks is meant, by name or id.",
                "properties": { "network": { "type": "string" } },
                "required": ["network"],
            }] });
        }
        requests.push(json!({
            "type": "object",
            "properties": { "execute": { "const": verb }, "arguments": arguments },
            "required": ["execute"],
        }));
        let value = if result.is_empty() { json!({ "type": "object" }) } else { schema.reference(result) };
        replies.insert(verb.to_owned(), value);
    }
    let error = schema.reference("error::ApiError");
    let mut definitions = schema.definitions;
    definitions.insert("replies".to_owned(), json!({ "properties": replies }));
    definitions.insert(
        "reply".to_owned(),
        json!({ "oneOf": [
            { "type": "object", "properties": { "return": true }, "required": ["return"] },
            { "type": "object", "properties": { "error": error }, "required": ["error"] },
        ] }),
    );
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tapway's control socket, protocol 1",
        "description": "A request is one of these; its reply is $defs/reply, whose 'return' is the property of \
            $defs/replies named after the verb. slirp4netns's three verbs keep that program's shapes and are not here.",
        "oneOf": requests,
        "$defs": definitions,
    })
}

#[test]
fn the_schema_is_that_of_the_types() {
    let path = root().join("docs/control-socket.schema.json");
    let text = serde_json::to_string_pretty(&generated()).unwrap() + "\n";
    if std::env::var_os("TAPWAY_WRITE_CONTRIB").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == text, "{} is stale; TAPWAY_WRITE_CONTRIB=1 cargo test --test schema", path.display());
}

#[test]
fn every_verb_is_in_it() {
    let text = std::fs::read_dir(root().join("src/api/verbs")).unwrap().map(|entry| entry.unwrap().path());
    for file in text.filter(|path| path.file_name().is_some_and(|name| name != "mod.rs")) {
        let source = std::fs::read_to_string(&file).unwrap();
        let source = source.split("#[cfg(test)]").next().unwrap();
        // Every example of a request in the module's documentation, and every constant list of verbs.
        for part in source.split("\"execute\":\"").skip(1) {
            let verb = part.split('"').next().unwrap();
            assert!(VERBS.iter().any(|(known, ..)| *known == verb), "{} names {verb}", file.display());
        }
        for list in source.split("VERBS: [&str; ").skip(1) {
            for verb in list.split(';').next().unwrap().split('"').skip(1).step_by(2) {
                assert!(VERBS.iter().any(|(known, ..)| *known == verb), "{} lists {verb}", file.display());
            }
        }
    }
}

#[test]
fn the_reader_knows_what_it_reads() {
    let source = "/// Some [`Thing`].\n#[serde(deny_unknown_fields)]\nstruct A {\n/// A name.\npub name: String,\n\
        #[serde(default)]\npub more: Option<Vec<u16>>,\n#[serde(rename = \"type\")]\npub kind: Option<B>,\n\
        #[serde(flatten)]\npub rest: B }\n#[serde(rename_all = \"snake_case\")]\nenum B { OneTwo, Three }";
    let items = syn::parse_file(source).unwrap().items;
    let names = ["m::A", "m::B"];
    let types = Types(names.iter().map(|name| (*name).to_owned()).zip(items).collect());
    let mut schema = Schema { types: &types, definitions: Map::new() };
    assert_eq!(schema.reference("m::A"), json!({ "$ref": "#/$defs/m.A" }));
    let b = json!({ "$ref": "#/$defs/m.B" });
    assert_eq!(
        schema.definitions["m.A"],
        json!({ "type": "object", "description": "Some `Thing`.", "additionalProperties": false,
            "properties": { "name": { "type": "string", "description": "A name." },
                "more": { "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": 65535 } },
                "type": { "anyOf": [b, { "type": "null" }] } },
            "required": ["name", "type"], "allOf": [b] })
    );
    assert_eq!(schema.definitions["m.B"]["oneOf"][0]["const"], "one_two");
}
