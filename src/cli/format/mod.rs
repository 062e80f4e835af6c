//! `--format` as docker has it: Go templates, a table of templates, or JSON.
//!
//! | text | means |
//! |---|---|
//! | `table` | the command's own table |
//! | `table {{.Name}}\t{{.Driver}}` | a table with these columns, under headings |
//! | `json` | one JSON object a line |
//! | anything else | a template for each row, each followed by a line feed |
//!
//! `\t` and `\n` may be typed as two characters. [`template`] says which part of Go's language there is; what there is not
//! is an error that names it. [`data`] is what templates see.

pub mod data;
pub mod template;

use serde::Serialize;

use self::data::Data;
use self::template::{Template, TemplateError};
use super::printable;

/// Least width of a column and space between columns (docker's formatter: `tabwriter` with 10 and 3).
const COLUMN: (usize, usize) = (10, 3);

/// What was asked for.
#[derive(Debug)]
pub enum Format {
    /// Rows under headings.
    Table(Template),
    /// A JSON object for each row.
    Json,
    /// A template for each row.
    Rows(Template),
}

impl Format {
    /// Reads the text; `table` is the command's own table.
    pub fn parse(text: &str, table: &str) -> Result<Self, TemplateError> {
        let template = |text: &str| Template::parse(&unescape(text));
        match text.trim() {
            "" | "table" => template(table).map(Self::Table),
            "json" => Ok(Self::Json),
            _ => match text.strip_prefix("table ") {
                Some(columns) => template(columns.trim_start()).map(Self::Table),
                None => template(text).map(Self::Rows),
            },
        }
    }

    /// The text for these rows; `headings` are those of the fields. One that is empty
    /// belongs to a [`data::Lookup`], which is headed by its key.
    pub fn render<T: Serialize>(&self, headings: &[(&str, &str)], rows: &[T]) -> Result<String, TemplateError> {
        let rows = rows.iter().map(Data::of).collect::<Result<Vec<_>, _>>().map_err(TemplateError::data)?;
        let lines = |template: &Template| rows.iter().map(|row| template.run(row)).collect::<Result<Vec<_>, _>>();
        match self {
            Self::Json => Ok(rows.iter().map(|row| row.json() + "\n").collect()),
            Self::Rows(template) => Ok(lines(template)?.into_iter().map(|line| line + "\n").collect()),
            Self::Table(template) => {
                let entry = |(field, heading): &(&str, &str)| {
                    let text = Data::Text((*heading).to_owned());
                    ((*field).to_owned(), if heading.is_empty() { Data::LookupHeading } else { text })
                };
                let head = template.run(&Data::Map(headings.iter().map(entry).collect()))?;
                let mut all = vec![head];
                all.extend(lines(template)?);
                Ok(columns(&all))
            }
        }
    }
}

/// `inspect --format`: a template for each object, or with `json` one line of all of them.
pub fn objects<T: Serialize>(format: &str, objects: &[T]) -> Result<String, TemplateError> {
    let all = objects.iter().map(Data::of).collect::<Result<Vec<_>, _>>().map_err(TemplateError::data)?;
    if format == "json" {
        return Ok(Data::List(all).json() + "\n");
    }
    let template = Template::parse(&unescape(format))?;
    all.iter().map(|object| Ok(template.run(object)? + "\n")).collect()
}

/// Tabs and line feeds that were typed as two characters.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

/// Aligns what stands between tabs. A line's last cell has no column.
fn columns(lines: &[String]) -> String {
    // Values may be anything; a tab is the template's own.
    let table: Vec<Vec<String>> = lines.iter().map(|line| line.split('\t').map(printable).collect()).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &table {
        for (i, cell) in row.iter().enumerate().take(row.len().saturating_sub(1)) {
            if widths.len() <= i {
                widths.push(COLUMN.0);
            }
            widths[i] = widths[i].max(cell.chars().count() + COLUMN.1);
        }
    }
    let mut text = String::new();
    for row in &table {
        for (i, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if i + 1 < row.len() {
                text.extend(std::iter::repeat_n(' ', widths[i] - cell.chars().count()));
            }
        }
        text.push('\n');
    }
    text
}

/// Order by name where numbers in names count as numbers, as docker sorts.
pub fn natural(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let letters = |text: &str| text.bytes().take_while(|byte| !byte.is_ascii_digit()).count();
        let cut = |text: &str| if digits(text) > 0 { digits(text) } else { letters(text) };
        let ((x, rest_x), (y, rest_y)) = (left.split_at(cut(left)), right.split_at(cut(right)));
        let order = match (digits(x) > 0, digits(y) > 0) {
            (true, true) => {
                let (x, y) = (x.trim_start_matches('0'), y.trim_start_matches('0'));
                x.len().cmp(&y.len()).then_with(|| x.cmp(y))
            }
            _ => x.cmp(y),
        };
        if order.is_ne() || (rest_x.is_empty() && rest_y.is_empty()) {
            // `a01` and `a1` are not the same.
            return order.then_with(|| a.cmp(b));
        }
        (left, right) = (rest_x, rest_y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Row {
        name: &'static str,
        driver: &'static str,
        label: data::Lookup,
    }

    fn rows() -> [Row; 2] {
        let label = data::Lookup([("com.example.the-team".to_owned(), "a".to_owned())].into());
        [
            Row { name: "a", driver: "bridge", label },
            Row { name: "much-longer-name", driver: "null\x1b", label: data::Lookup::default() },
        ]
    }

    const HEADINGS: [(&str, &str); 3] = [("Name", "NAME"), ("Driver", "DRIVER"), ("Label", "")];

    fn render(text: &str) -> Result<String, String> {
        let format = Format::parse(text, "table {{.Name}}").map_err(|error| error.to_string())?;
        format.render(&HEADINGS, &rows()).map_err(|error| error.to_string())
    }

    #[test]
    fn tables_rows_and_json() {
        assert_eq!(
            render("table {{.Name}}\\t{{.Driver}}").unwrap(),
            "NAME               DRIVER\na                  bridge\nmuch-longer-name   null\\u{1b}\n"
        );
        assert_eq!(render("{{.Driver}}/{{.Name}}").unwrap(), "bridge/a\nnull\x1b/much-longer-name\n");
        assert_eq!(render("json").unwrap().lines().next().unwrap(), r#"{"Name":"a","Driver":"bridge"}"#);
        let narrow =
            Format::parse("table {{.Driver}}\t{{.Driver}}", "").unwrap().render(&HEADINGS, &rows()[..1]).unwrap();
        assert_eq!(narrow, "DRIVER    DRIVER\nbridge    bridge\n");
        assert_eq!(
            render("table {{.Name}}\\t{{.Label \"com.example.the-team\"}}").unwrap(),
            "NAME               the team\na                  a\nmuch-longer-name   \n"
        );
        assert!(render("{{.Label}}").unwrap_err().contains("Label is asked with a key"));
        assert!(render("{{.Nmae}}").unwrap_err().contains("Nmae"));
    }

    #[test]
    fn numbers_in_names_are_numbers() {
        let mut names = ["n10", "n9", "bridge", "n", "a2b10", "a2b9", "n09", "10", "9"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["9", "10", "a2b9", "a2b10", "bridge", "n", "n09", "n9", "n10"]);
    }
}
