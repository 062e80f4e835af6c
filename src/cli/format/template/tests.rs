//! Templates as they are typed after `docker network inspect --format`.

use super::*;
use proptest::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Network {
    name: &'static str,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    internal: bool,
    options: BTreeMap<&'static str, &'static str>,
    containers: BTreeMap<&'static str, Member>,
    mtu: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam {
    config: Vec<Config>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    subnet: &'static str,
    #[serde(rename = "IPRange", skip_serializing_if = "Option::is_none")]
    ip_range: Option<&'static str>,
    gateway: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Member {
    name: &'static str,
}

fn data() -> Data {
    let config = |subnet, gateway| Config { subnet, ip_range: None, gateway };
    Data::of(&Network {
        name: "foo",
        ipam: Ipam { config: vec![config("172.18.0.0/16", "172.18.0.1"), config("fd00::/64", "fd00::1")] },
        internal: false,
        options: [("com.docker.network.driver.mtu", "1500"), ("k", "v")].into(),
        containers: [("b2", Member { name: "db" }), ("a1", Member { name: "web" })].into(),
        mtu: 1500,
    })
    .unwrap()
}

fn run(text: &str) -> String {
    Template::parse(text).and_then(|template| template.run(&data())).unwrap_or_else(|error| format!("{text}: {error}"))
}

fn refused(text: &str) -> String {
    Template::parse(text).and_then(|template| template.run(&data())).unwrap_err().to_string()
}

#[test]
fn what_people_type() {
    for (text, expected) in [
        ("{{.Name}}", "foo"),
        ("{{ .Name }} {{.Internal}} {{.Mtu}}", "foo false 1500"),
        ("{{.IPAM.Config}}", "[{172.18.0.0/16  172.18.0.1} {fd00::/64  fd00::1}]"),
        ("{{range .IPAM.Config}}{{.Subnet}} {{end}}", "172.18.0.0/16 fd00::/64 "),
        ("{{range $i, $c := .IPAM.Config}}{{$i}}={{$c.Gateway}},{{end}}", "0=172.18.0.1,1=fd00::1,"),
        ("{{(index .IPAM.Config 0).Gateway}}", "172.18.0.1"),
        ("{{index .Options \"k\"}}|{{index .Options \"none\"}}|{{.Options.none}}", "v||<no value>"),
        ("{{index .Options `com.docker.network.driver.mtu`}}", "1500"),
        ("{{json .Options}}", r#"{"com.docker.network.driver.mtu":"1500","k":"v"}"#),
        (
            "{{json .IPAM}}",
            r#"{"Config":[{"Subnet":"172.18.0.0/16","Gateway":"172.18.0.1"},{"Subnet":"fd00::/64","Gateway":"fd00::1"}]}"#,
        ),
        ("{{range $id, $c := .Containers}}{{printf \"%s=%s\\n\" $id $c.Name}}{{end}}", "a1=web\nb2=db\n"),
        ("{{len .Containers}}{{len .Name}}", "23"),
        ("{{if .Internal}}in{{else}}out{{end}}", "out"),
        ("{{if .Internal}}a{{else if eq .Name \"foo\" \"bar\"}}b{{else}}c{{end}}", "b"),
        ("{{if and (eq .Name \"foo\") (not .Internal)}}yes{{end}}", "yes"),
        ("{{with .Options}}{{.k}} of {{$.Name}}{{end}}", "v of foo"),
        ("{{range .Nothing}}x{{else}}none{{end}}", ""),
        ("{{$n := .Name}}{{range .IPAM.Config}}{{$n}} {{end}}", "foo foo "),
        ("{{.Name | upper | printf \"%s-%q%%\" \"a\"}}", "a-\"FOO\"%"),
        ("a  {{- /* said */ -}}  b {{- .Name -}} c", "abfooc"),
        ("{{range .IPAM.Config}}\n{{- .Subnet}}{{end}}", "172.18.0.0/16fd00::/64"),
        ("{{println .Name .Mtu}}{{print .Name}}", "foo 1500\nfoo"),
        ("{{if gt .Mtu 1400}}big{{end}}{{if lt .Name \"a\"}}no{{end}}", "big"),
        ("{{range .IPAM.Config}}{{if eq .IPRange \"\"}}-{{end}}{{end}}", "--"),
        ("no template at all", "no template at all"),
        ("", ""),
    ] {
        if text.contains(".Nothing") {
            // A struct without that field: an error, as in Go.
            assert!(refused(text).contains("no field Nothing"));
        } else {
            assert_eq!(run(text), expected, "{text}");
        }
    }
}

#[test]
fn what_is_refused_names_itself() {
    for (text, part) in [
        ("{{.Nmae}}", "there is no field Nmae; there are Name, IPAM, Internal"),
        ("{{.Name.First}}", "foo has no field First"),
        ("{{slice .Name 1}}", "function \"slice\" is not supported; there are and, eq"),
        ("{{template \"x\"}}", "{{template}} is not supported"),
        ("{{break}}", "{{break}} is not supported"),
        ("{{range .IPAM.Config}}", "{{range}} has no {{end}}"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{if .Name}}{{else with .Name}}{{end}}", "{{else with .Name}} is not supported"),
        ("{{.Name", "a '}}' is missing"),
        ("{{}}", "missing value"),
        ("{{.Name |}}", "missing value"),
        ("{{\"open}}", "unterminated quoted string"),
        ("{{(.Name}}", "unclosed left paren"),
        ("{{.Name)}}", "unexpected right paren"),
        ("{{.Name .Name}}", "can't give argument"),
        ("{{$x}}", "undefined variable \"$x\""),
        ("{{json}}", "wrong number of args for json: want 1, got 0"),
        ("{{index .IPAM.Config 5}}", "index out of range: 5"),
        ("{{index .Name 1}}", "cannot index foo"),
        ("{{range .Name}}{{end}}", "range can't iterate over foo"),
        ("{{printf \"%x\" .Name}}", "%x"),
        ("{{.Name}}{{/* open", "unclosed comment"),
        ("{{.Name @}}", "unexpected \"@\""),
        ("{{..Name}}", "bad field path"),
        ("{{$x.}}", "bad field path"),
    ] {
        let error = refused(text);
        assert!(error.starts_with("template parsing error: ") && error.contains(part), "{text}: {error}");
    }
    assert!(refused(&"{{if .Name}}".repeat(1000)).contains("nested too deeply"));
    assert!(refused(&format!("{{{{{}}}}}", "(".repeat(1000))).contains("nested too deeply"));
    assert!(refused(&("{{if .Name}}a".to_owned() + &"{{else if .Name}}b".repeat(1000))).contains("nested too deeply"));
}

proptest! {
    #[test]
    fn hostile_templates_do_not_panic(text in "(\\{\\{|\\}\\}|-| |\\.|\\$|x|Name|range|if|else|end|index|json|\\(|\\)|\\||:=|,|\"|`|/\\*|\\*/|é|0|%){0,30}") {
        let _ = Template::parse(&text).and_then(|template| template.run(&data()));
    }
}
