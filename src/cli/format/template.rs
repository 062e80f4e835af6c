//! Go's text/template, as far as `--format` needs it.
//!
//! ```text
//! {{.IPAM.Config}}  {{json .Labels}}  {{index .Options "k"}}  {{len .Containers}}  {{join .List ", "}}
//! {{range .IPAM.Config}}{{.Subnet}}{{else}}none{{end}}       {{range $k, $v := .Containers}}{{$v.Name}} {{end}}
//! {{if .Internal}}in{{else if eq .Name "a"}}a{{else}}out{{end}}  {{with .Labels}}…{{end}}  {{$x := .Name}}{{$x}}
//! {{- .Name -}} takes away blanks around it, {{.Name | upper | printf "%s!"}} hands on, {{/* is left out */}}
//! ```
//!
//! A field may be one that is asked with a key: {{.Label "team"}}. Functions: and, eq, ge, gt, index, join, json, le, len, lower, lt, ne, not, or, print, printf (%s %v %d %q %%), println,
//! upper. Anything else is refused by name. A field that a struct does not have is an error, as in Go; a key that a map
//! does not have is `<no value>`. Templates are the user's own: what bounds them is their length.

use super::data::{Data, quoted};

/// Deepest nesting, so that a long template cannot use up the stack.
const MAX_DEPTH: usize = 64;
/// Functions that there are.
const FUNCTIONS: [&str; 18] = [
    "and", "eq", "ge", "gt", "index", "join", "json", "le", "len", "lower", "lt", "ne", "not", "or", "print", "printf",
    "println", "upper",
];

/// Why a template is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("template parsing error: {0}")]
pub struct TemplateError(String);

impl TemplateError {
    pub(in crate::cli) fn data(error: super::data::NotData) -> Self {
        Self(error.to_string())
    }
}

type Result<T> = std::result::Result<T, TemplateError>;

fn fail<T>(what: impl Into<String>) -> Result<T> {
    Err(TemplateError(what.into()))
}

/// A template that was read.
#[derive(Clone, Debug)]
pub struct Template(Vec<Node>);

#[derive(Clone, Debug)]
enum Node {
    Text(String),
    Print(Pipe),
    Set(String, Pipe),
    If(Pipe, Vec<Node>, Vec<Node>),
    With(Pipe, Vec<Node>, Vec<Node>),
    Range { names: Vec<String>, over: Pipe, body: Vec<Node>, otherwise: Vec<Node> },
}

/// Commands, each of which gets the value of the one before as its last argument.
type Pipe = Vec<Vec<Operand>>;

#[derive(Clone, Debug)]
enum Operand {
    Literal(Data),
    Function(String),
    /// A variable (the dot is the one without a name) and fields of it.
    Value(String, Vec<String>),
    Group(Pipe, Vec<String>),
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parser = Parser { pieces: pieces(text)?.into_iter(), depth: 0 };
        let (nodes, end) = parser.block()?;
        match end {
            None => Ok(Self(nodes)),
            Some(word) => fail(format!("unexpected {{{{{}}}}}", word.join(" "))),
        }
    }

    /// What it makes of `data`.
    pub fn run(&self, data: &Data) -> Result<String> {
        let mut out = String::new();
        let mut scope = vec![("$".to_owned(), data.clone())];
        run(&self.0, data, &mut scope, &mut out)?;
        Ok(out)
    }
}

/// Text between actions, and the words of actions.
enum Piece {
    Text(String),
    Action(Vec<String>),
}

fn pieces(text: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let (mut rest, mut trim) = (text, false);
    loop {
        let at = rest.find("{{");
        let mut before = &rest[..at.unwrap_or(rest.len())];
        if trim {
            before = before.trim_start();
        }
        let Some(at) = at else {
            pieces.push(Piece::Text(before.to_owned()));
            return Ok(pieces);
        };
        let mut inside = &rest[at + 2..];
        if let Some(trimmed) = inside.strip_prefix('-').filter(|t| t.starts_with(char::is_whitespace)) {
            before = before.trim_end();
            inside = trimmed;
        }
        pieces.push(Piece::Text(before.to_owned()));
        if inside.trim_start().starts_with("/*") {
            let Some(end) = inside.find("*/") else { return fail("unclosed comment") };
            let after = inside[end + 2..].trim_start();
            let (after, trims) = after.strip_prefix('-').map_or((after, false), |after| (after, true));
            let Some(after) = after.strip_prefix("}}") else { return fail("comment ends before closing delimiter") };
            (rest, trim) = (after, trims);
            continue;
        }
        let (words, after) = words(inside)?;
        (rest, trim) = after;
        pieces.push(Piece::Action(words));
    }
}

/// The words of an action, what follows it, and whether blanks there go.
fn words(text: &str) -> Result<(Vec<String>, (&str, bool))> {
    let mut words: Vec<String> = Vec::new();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        let Some(first) = rest.chars().next() else { return fail("unclosed action: a '}}' is missing") };
        if let Some(after) = rest.strip_prefix("}}") {
            return Ok((words, (after, false)));
        }
        if first.is_whitespace() {
            let blank = rest.len() - rest.trim_start().len();
            if rest[blank..].starts_with("-}}") {
                return Ok((words, (&rest[blank + 3..], true)));
            }
            at += blank;
            words.push(" ".to_owned());
            continue;
        }
        let length = match first {
            '"' => string_length(rest)?,
            '`' => match rest[1..].find('`') {
                Some(end) => end + 2,
                None => return fail("unterminated raw quoted string"),
            },
            '(' | ')' | '|' | ',' | '=' => 1,
            ':' if rest.starts_with(":=") => 2,
            '.' | '$' | '_' | '-' | '+' => 1 + rest[1..].bytes().take_while(|&b| is_word(b)).count(),
            c if c.is_ascii_alphanumeric() => rest.bytes().take_while(|&b| is_word(b)).count(),
            c => return fail(format!("unexpected {} in an action", quoted(&c.to_string()))),
        };
        words.push(rest[..length].to_owned());
        at += length;
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.'
}

fn string_length(text: &str) -> Result<usize> {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Ok(i + 1),
            _ => {}
        }
    }
    fail("unterminated quoted string")
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    depth: usize,
}

impl Parser {
    /// Nodes up to an `end`, an `else` or the text's end, and the words of the one that it was.
    fn block(&mut self) -> Result<(Vec<Node>, Option<Vec<String>>)> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return fail("the template is nested too deeply");
        }
        let mut nodes = Vec::new();
        let mut end = None;
        while let Some(piece) = self.pieces.next() {
            let words = match piece {
                Piece::Text(text) => {
                    if !text.is_empty() {
                        nodes.push(Node::Text(text));
                    }
                    continue;
                }
                Piece::Action(words) => words,
            };
            let bare: Vec<String> = words.iter().filter(|word| *word != " ").cloned().collect();
            match bare.first().map(String::as_str) {
                None => return fail("missing value for command"),
                Some("end" | "else") => {
                    end = Some(bare);
                    break;
                }
                Some("if" | "with" | "range") => nodes.push(self.control(&words)?),
                Some(word @ ("define" | "template" | "block" | "break" | "continue")) => {
                    return fail(format!("{{{{{word}}}}} is not supported"));
                }
                Some(name) if name.starts_with('$') && bare.get(1).is_some_and(|word| word == ":=" || word == "=") => {
                    let at = words.iter().position(|word| word == ":=" || word == "=").unwrap_or(0);
                    nodes.push(Node::Set(name.to_owned(), pipe(&words[at + 1..])?));
                }
                Some(_) => nodes.push(Node::Print(pipe(&words)?)),
            }
        }
        self.depth -= 1;
        Ok((nodes, end))
    }

    /// `if`, `with` or `range`, up to its `end`.
    fn control(&mut self, words: &[String]) -> Result<Node> {
        let at = words.iter().position(|word| word != " ").unwrap_or(0);
        let (keyword, mut rest) = (words[at].clone(), &words[at + 1..]);
        let mut names = Vec::new();
        if keyword == "range"
            && let Some(at) = rest.iter().position(|word| word == ":=")
        {
            names = rest[..at].iter().filter(|word| word.starts_with('$')).cloned().collect();
            let others =
                rest[..at].iter().filter(|word| !word.starts_with('$') && *word != "," && *word != " ").count();
            if others > 0 || names.is_empty() || names.len() > 2 {
                return fail("a range has one variable or two: {{range $k, $v := .Map}}");
            }
            rest = &rest[at + 1..];
        }
        let subject = pipe(rest)?;
        let (body, mut end) = self.block()?;
        let mut otherwise = Vec::new();
        if let Some(words) = end.take_if(|words| words[0] == "else") {
            match words.get(1).map(String::as_str) {
                None => (otherwise, end) = self.block()?,
                // `else if` has the `end` of the whole.
                Some("if") if keyword == "if" => {
                    let words: Vec<String> =
                        words[1..].iter().flat_map(|word| [word.clone(), " ".to_owned()]).collect();
                    otherwise = vec![self.nested(&words)?];
                    end = Some(vec!["end".to_owned()]);
                }
                Some(_) => return fail(format!("{{{{{}}}}} is not supported", words.join(" "))),
            }
        }
        match end {
            Some(words) if words[0] == "end" && words.len() == 1 => Ok(match keyword.as_str() {
                "if" => Node::If(subject, body, otherwise),
                "with" => Node::With(subject, body, otherwise),
                _ => Node::Range { names, over: subject, body, otherwise },
            }),
            Some(words) => fail(format!("unexpected {{{{{}}}}}", words.join(" "))),
            None => fail(format!("{{{{{keyword}}}}} has no {{{{end}}}}")),
        }
    }

    fn nested(&mut self, words: &[String]) -> Result<Node> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return fail("the template is nested too deeply");
        }
        let node = self.control(words);
        self.depth -= 1;
        node
    }
}

/// Commands with '|' between them.
fn pipe(words: &[String]) -> Result<Pipe> {
    let mut rest = words;
    let pipe = pipe_until(&mut rest, false, 0)?;
    Ok(pipe)
}

fn pipe_until(rest: &mut &[String], inner: bool, depth: usize) -> Result<Pipe> {
    if depth > MAX_DEPTH {
        return fail("the template is nested too deeply");
    }
    let mut pipe: Pipe = vec![Vec::new()];
    loop {
        let Some((word, after)) = rest.split_first() else {
            if inner {
                return fail("unclosed left paren");
            }
            break;
        };
        *rest = after;
        let command = pipe.len() - 1;
        let operand = match word.as_str() {
            " " => continue,
            "|" => {
                if pipe[command].is_empty() {
                    return fail("missing value for command");
                }
                pipe.push(Vec::new());
                continue;
            }
            ")" if inner => break,
            ")" => return fail("unexpected right paren"),
            "(" => {
                let group = pipe_until(rest, true, depth + 1)?;
                // Fields of what stands in parentheses follow without a blank.
                let fields = match rest.split_first() {
                    Some((word, after)) if word.starts_with('.') && word.len() > 1 => {
                        *rest = after;
                        fields(&word[1..])?
                    }
                    _ => Vec::new(),
                };
                Operand::Group(group, fields)
            }
            word => operand(word)?,
        };
        pipe[command].push(operand);
    }
    if pipe.iter().any(Vec::is_empty) {
        return fail("missing value for command");
    }
    Ok(pipe)
}

fn fields(path: &str) -> Result<Vec<String>> {
    let fields: Vec<String> = path.split('.').map(str::to_owned).collect();
    if fields.iter().any(String::is_empty) { fail(format!("bad field path .{path}")) } else { Ok(fields) }
}

fn operand(word: &str) -> Result<Operand> {
    let first = word.chars().next().unwrap_or(' ');
    match first {
        '.' if word == "." => Ok(Operand::Value(".".to_owned(), Vec::new())),
        '.' => Ok(Operand::Value(".".to_owned(), fields(&word[1..])?)),
        '$' => match word.split_once('.') {
            None => Ok(Operand::Value(word.to_owned(), Vec::new())),
            Some((name, path)) => Ok(Operand::Value(name.to_owned(), fields(path)?)),
        },
        '`' => Ok(Operand::Literal(Data::Text(word.trim_matches('`').to_owned()))),
        '"' => match serde_json::from_str(word) {
            Ok(text) => Ok(Operand::Literal(Data::Text(text))),
            Err(_) => fail(format!("bad string {word}")),
        },
        _ if word.parse::<i64>().is_ok() => Ok(Operand::Literal(Data::Int(word.parse().unwrap_or_default()))),
        _ => match word {
            "true" | "false" => Ok(Operand::Literal(Data::Bool(word == "true"))),
            "nil" => Ok(Operand::Literal(Data::Null)),
            name if FUNCTIONS.contains(&name) => Ok(Operand::Function(name.to_owned())),
            name => fail(format!("function {} is not supported; there are {}", quoted(name), FUNCTIONS.join(", "))),
        },
    }
}

type Scope = Vec<(String, Data)>;

fn run(nodes: &[Node], dot: &Data, scope: &mut Scope, out: &mut String) -> Result<()> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Print(pipe) => out.push_str(&shown(&evaluate(pipe, dot, scope)?)),
            Node::Set(name, pipe) => {
                let value = evaluate(pipe, dot, scope)?;
                scope.push((name.clone(), value.unwrap_or(Data::Null)));
            }
            Node::If(pipe, body, otherwise) => {
                let branch =
                    if evaluate(pipe, dot, scope)?.is_some_and(|value| value.truth()) { body } else { otherwise };
                inner(branch, dot, scope, out, [])?;
            }
            Node::With(pipe, body, otherwise) => match evaluate(pipe, dot, scope)?.filter(Data::truth) {
                Some(value) => inner(body, &value, scope, out, [])?,
                None => inner(otherwise, dot, scope, out, [])?,
            },
            Node::Range { names, over, body, otherwise } => {
                let items: Vec<(Data, Data)> = match evaluate(over, dot, scope)? {
                    Some(Data::List(items)) => {
                        items.into_iter().enumerate().map(|(i, item)| (Data::Int(i as i128), item)).collect()
                    }
                    Some(Data::Map(entries)) => entries.into_iter().map(|(k, v)| (Data::Text(k), v)).collect(),
                    None | Some(Data::Null | Data::Absent) => Vec::new(),
                    Some(other) => return fail(format!("range can't iterate over {}", other.go())),
                };
                if items.is_empty() {
                    inner(otherwise, dot, scope, out, [])?;
                }
                for (key, value) in items {
                    let bound = match names.as_slice() {
                        [] => vec![],
                        [only] => vec![(only.clone(), value.clone())],
                        [first, second, ..] => vec![(first.clone(), key), (second.clone(), value.clone())],
                    };
                    inner(body, &value, scope, out, bound)?;
                }
            }
        }
    }
    Ok(())
}

/// Runs a block whose variables end with it.
fn inner(
    nodes: &[Node],
    dot: &Data,
    scope: &mut Scope,
    out: &mut String,
    bound: impl IntoIterator<Item = (String, Data)>,
) -> Result<()> {
    let mark = scope.len();
    scope.extend(bound);
    run(nodes, dot, scope, out)?;
    scope.truncate(mark);
    Ok(())
}

/// None is what Go prints as `<no value>`.
type Value = Option<Data>;

fn shown(value: &Value) -> String {
    value.as_ref().map_or_else(|| "<no value>".to_owned(), Data::go)
}

fn evaluate(pipe: &Pipe, dot: &Data, scope: &Scope) -> Result<Value> {
    let mut carried: Option<Value> = None;
    for command in pipe {
        let Some((first, rest)) = command.split_first() else { return fail("missing value for command") };
        let value = if let Operand::Function(name) = first {
            let mut arguments = rest.iter().map(|operand| value_of(operand, dot, scope)).collect::<Result<Vec<_>>>()?;
            arguments.extend(carried.take());
            call(name, &arguments)?
        } else {
            let value = value_of(first, dot, scope)?;
            let mut keys = rest.iter().map(|operand| value_of(operand, dot, scope)).collect::<Result<Vec<_>>>()?;
            keys.extend(carried.take());
            match (value, keys.as_slice()) {
                (Some(value @ (Data::Lookup(_) | Data::LookupHeading)), keys) => look_up(value, first, keys)?,
                (value, []) => value,
                _ => return fail("can't give argument to non-function"),
            }
        };
        carried = Some(value);
    }
    Ok(carried.flatten())
}

/// Docker's `.Label "key"`.
fn look_up(value: Data, asked: &Operand, keys: &[Value]) -> Result<Value> {
    let [Some(Data::Text(key))] = keys else {
        let name = match asked {
            Operand::Value(_, path) => path.last().map_or(".", String::as_str),
            _ => "it",
        };
        return fail(format!("{name} is asked with a key: {{{{.{name} \"key\"}}}}"));
    };
    Ok(Some(match value {
        Data::Lookup(mut entries) => entries.remove(key).unwrap_or(Data::Text(String::new())),
        // As docker heads it: the key's last part, in words.
        _ => Data::Text(key.rsplit('.').next().unwrap_or(key).replace(['-', '_'], " ")),
    }))
}

fn value_of(operand: &Operand, dot: &Data, scope: &Scope) -> Result<Value> {
    match operand {
        Operand::Literal(data) => Ok(Some(data.clone())),
        Operand::Function(name) => call(name, &[]),
        Operand::Group(pipe, path) => descend(evaluate(pipe, dot, scope)?, path),
        Operand::Value(name, path) => {
            let start = if name == "." {
                dot
            } else {
                match scope.iter().rev().find(|(known, _)| known == name) {
                    Some((_, value)) => value,
                    None => return fail(format!("undefined variable {}", quoted(name))),
                }
            };
            descend(Some(start.clone()), path)
        }
    }
}

fn descend(start: Value, path: &[String]) -> Result<Value> {
    let mut value = start;
    for field in path {
        value = match value {
            Some(Data::Struct(fields)) => {
                let names: Vec<String> = fields.iter().map(|(name, _)| name.clone()).collect();
                match fields.into_iter().find(|(name, _)| name == field) {
                    Some((_, value)) => Some(value),
                    None => return fail(format!("there is no field {field}; there are {}", names.join(", "))),
                }
            }
            Some(Data::Map(mut entries)) => entries.remove(field),
            None | Some(Data::Null | Data::Absent) => None,
            Some(other) => return fail(format!("{} has no field {field}", other.go())),
        };
    }
    Ok(value)
}

fn call(name: &str, arguments: &[Value]) -> Result<Value> {
    let text = |text: String| Ok(Some(Data::Text(text)));
    let truth = |value: &Value| value.as_ref().is_some_and(Data::truth);
    let count = |wanted: &str| fail(format!("wrong number of args for {name}: want {wanted}, got {}", arguments.len()));
    match (name, arguments) {
        ("json", [value]) => text(value.as_ref().unwrap_or(&Data::Null).json()),
        ("upper", [value]) => text(shown(value).to_uppercase()),
        ("lower", [value]) => text(shown(value).to_lowercase()),
        ("print", values) => text(values.iter().map(shown).collect::<Vec<_>>().join(" ")),
        ("println", values) => text(values.iter().map(shown).collect::<Vec<_>>().join(" ") + "\n"),
        ("printf", [format, values @ ..]) => text(printf(&shown(format), values)?),
        ("not", [value]) => Ok(Some(Data::Bool(!truth(value)))),
        ("and", [.., last]) => Ok(arguments.iter().find(|value| !truth(value)).unwrap_or(last).clone()),
        ("or", [.., last]) => Ok(arguments.iter().find(|value| truth(value)).unwrap_or(last).clone()),
        ("len", [Some(Data::Text(text))]) => Ok(Some(Data::Int(text.len() as i128))),
        ("len", [Some(Data::List(items))]) => Ok(Some(Data::Int(items.len() as i128))),
        ("len", [Some(Data::Map(entries))]) => Ok(Some(Data::Int(entries.len() as i128))),
        ("len", [None | Some(Data::Null | Data::Absent)]) => Ok(Some(Data::Int(0))),
        ("len", [value]) => fail(format!("len of {}", shown(value))),
        ("join", [Some(Data::List(items)), Some(Data::Text(between))]) => {
            text(items.iter().map(Data::go).collect::<Vec<_>>().join(between))
        }
        ("join", [None | Some(Data::Null | Data::Absent), _]) => text(String::new()),
        ("join", [_, _]) => fail("join takes a list and a text"),
        ("index", [value, keys @ ..]) => keys.iter().try_fold(value.clone(), index),
        ("eq", [first, others @ ..]) if !others.is_empty() => {
            Ok(Some(Data::Bool(others.iter().any(|other| same(first, other)))))
        }
        ("ne", [a, b]) => Ok(Some(Data::Bool(!same(a, b)))),
        ("lt" | "le" | "gt" | "ge", [a, b]) => {
            let order = match (a, b) {
                (Some(Data::Int(a)), Some(Data::Int(b))) => a.cmp(b),
                (Some(Data::Text(a)), Some(Data::Text(b))) => a.cmp(b),
                _ => return fail(format!("{name}: {} and {} have no order", shown(a), shown(b))),
            };
            let holds = match name {
                "lt" => order.is_lt(),
                "le" => order.is_le(),
                "gt" => order.is_gt(),
                _ => order.is_ge(),
            };
            Ok(Some(Data::Bool(holds)))
        }
        ("and" | "or" | "printf" | "index", _) => count("at least 1"),
        ("join" | "ne" | "lt" | "le" | "gt" | "ge", _) => count("2"),
        ("eq", _) => count("at least 2"),
        _ => count("1"),
    }
}

fn same(a: &Value, b: &Value) -> bool {
    // A field that was left out is its zero value.
    let empty =
        |value: &Value| matches!(value, Some(Data::Absent)) || matches!(value, Some(Data::Text(t)) if t.is_empty());
    a == b || (empty(a) && empty(b))
}

fn index(value: Value, key: &Value) -> Result<Value> {
    match (value, key) {
        (Some(Data::List(mut items)), Some(Data::Int(at))) => match usize::try_from(*at) {
            Ok(at) if at < items.len() => Ok(Some(items.swap_remove(at))),
            _ => fail(format!("index out of range: {at}")),
        },
        // Go gives the zero value of the map's kind, which for Docker's maps is the empty text.
        (Some(Data::Map(mut entries)), Some(Data::Text(key))) => {
            Ok(Some(entries.remove(key).unwrap_or_else(|| Data::Text(String::new()))))
        }
        (None | Some(Data::Null | Data::Absent), _) => Ok(None),
        (Some(value), key) => fail(format!("cannot index {} with {}", value.go(), shown(key))),
    }
}

fn printf(format: &str, values: &[Value]) -> Result<String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let verb = chars.next();
        if verb == Some('%') {
            out.push('%');
            continue;
        }
        let Some(value) = values.next() else { return fail("printf has more verbs than values") };
        match verb {
            Some('s' | 'v' | 'd') => out.push_str(&shown(value)),
            Some('q') => out.push_str(&quoted(&shown(value))),
            other => {
                let verb = other.map(String::from).unwrap_or_default();
                return fail(format!("printf does not know %{verb}; there are %s, %v, %d, %q and %%"));
            }
        }
    }
    if values.next().is_some() { fail("printf has more values than verbs") } else { Ok(out) }
}

#[cfg(test)]
mod tests;
