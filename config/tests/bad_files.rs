//! Every error names the place and the mend: files that are wrong, and exactly what people are told.

use std::path::Path;

use freeboard_config::Workload;

fn problems(text: &str) -> String {
    match Workload::parse(text, "w.toml") {
        Err(error) => error.to_string(),
        Ok(workload) => panic!("taken for good:\n{text}\n{workload:?}"),
    }
}

#[track_caller]
fn table(cases: &[(&str, &str)]) {
    let mut wrong = String::new();
    for (text, want) in cases {
        let got = problems(text);
        if got != *want {
            wrong += &format!("--- {text}\n got: {got}\nwant: {want}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn not_toml() {
    table(&[
        ("[memory]\ntarget = 80%\n", "w.toml:2:10: a value without quotes; mend: write \"80%\""),
        ("target = \n", "w.toml:1:10: a key without a value; mend: write one behind the =, as mode = \"auto\""),
        (
            "[writes]\nwindow = \"4MiB\nmode = \"auto\"\n",
            "w.toml:2:15: not TOML: invalid basic string, expected `\"`; mend: write \" here",
        ),
        ("[writes\nmode = \"auto\"\n", "w.toml:1:8: not TOML: unclosed table, expected `]`; mend: write ] here"),
        (
            "[writes]\nmode: auto\n",
            "w.toml:2:7: not TOML: key with no value, expected `=`; mend: write one key and value a line, as mode = \"auto\"",
        ),
        (
            "[writes]\nmode = \"auto\"\nmode = \"off\"\n",
            "w.toml:3:1: \"mode\" stands here a second time; mend: keep one of the two",
        ),
        (
            "[writes]\n[memory]\n[writes]\n",
            "w.toml:3:2: \"writes\" stands here a second time; mend: put all of it below one line [writes]",
        ),
        (
            "[[rule]]\npath = \"/a\"\n[rule]\npath = \"/b\"\n",
            "w.toml:3:2: \"rule\" stands here a second time; mend: start every rule with [[rule]]",
        ),
        (
            "[processes]\nexclude = [\"/a\",\n",
            "w.toml:2:17: not TOML: unclosed array, expected `]`; mend: write ] here",
        ),
        (
            "[[rule]]\npath = \"C:\\qemu\"\n",
            "w.toml:2:12: not TOML: missing escaped value, expected `b`, `e`, `f`, `n`, `r`, `\\`, `\"`, `x`, `u`, `U`; mend: write \\\\ for a backslash",
        ),
        (
            "[writes]\nmode = \"auto\" window = \"auto\"\n",
            "w.toml:2:15: not TOML: unexpected key or value, expected newline, `#`; mend: write one key and value a line, as mode = \"auto\"",
        ),
    ]);
}

#[test]
fn unknown_keys() {
    table(&[
        (
            "[writes]\nmod = \"auto\"\n",
            "w.toml:2:1: unknown key \"mod\" in [writes] (did you mean mode?); mend: write mode",
        ),
        (
            "[writes]\nmax-stall = \"10s\"\n",
            "w.toml:2:1: unknown key \"max-stall\" in [writes] (did you mean max_stall?); mend: write max_stall",
        ),
        (
            "[writes]\nmaxStall = \"10s\"\n",
            "w.toml:2:1: unknown key \"maxStall\" in [writes] (did you mean max_stall?); mend: write max_stall",
        ),
        (
            "[writes]\ntarget = \"80%\"\n",
            "w.toml:2:1: unknown key \"target\" in [writes]; mend: move it below a line [memory]",
        ),
        (
            "[writes]\ncolour = \"red\"\n",
            "w.toml:2:1: unknown key \"colour\" in [writes]; mend: remove it; [writes] has mode, window and max_stall",
        ),
        (
            "[processes]\ninclude = []\n",
            "w.toml:2:1: unknown key \"include\" in [processes]; mend: remove it; [processes] has exclude",
        ),
        (
            "[sweep]\npath = [\"/logs/**\"]\n",
            "w.toml:2:1: unknown key \"path\" in [sweep] (did you mean paths?); mend: write paths",
        ),
        (
            "[[rule]]\npath = \"/a\"\nmode = \"off\"\nread = \"drop-behind\"\n",
            "w.toml:4:1: unknown key \"read\" in [[rule]] (did you mean reads?); mend: write reads",
        ),
        ("[memroy]\n", "w.toml:1:2: unknown section \"memroy\" (did you mean [memory]?); mend: write [memory]"),
        (
            "[[rules]]\npath = \"/a\"\n",
            "w.toml:1:3: unknown section \"rules\" (did you mean [[rule]]?); mend: write [[rule]]",
        ),
        (
            "[network]\n",
            "w.toml:1:2: unknown section \"network\"; mend: remove it; there are [memory], [writes], [[rule]], [processes] and [sweep]",
        ),
        (
            "target = \"80%\"\n",
            "w.toml:1:1: key \"target\" stands outside of any section; mend: move it below a line [memory]",
        ),
        (
            "version = 1\n",
            "w.toml:1:1: key \"version\" stands outside of any section; mend: remove it, or move it below one of [memory], [writes], [[rule]], [processes] and [sweep]",
        ),
    ]);
}

#[test]
fn wrong_types() {
    table(&[
        ("[memory]\ntarget = 80\n", "w.toml:2:10: target takes a string, not an integer; mend: write target = \"80%\""),
        ("[memory]\ntarget = 0.8\n", "w.toml:2:10: target takes a string, not a float; mend: write target = \"80%\""),
        (
            "[writes]\nmode = true\n",
            "w.toml:2:8: mode takes a string, not a boolean; mend: write mode = \"auto\", \"always\", \"observe\" or \"off\"",
        ),
        (
            "[writes]\nwindow = 4194304\n",
            "w.toml:2:10: window takes a string, not an integer; mend: write window = \"auto\" or a size in quotes, as \"4MiB\"",
        ),
        (
            "[writes]\nmax_stall = 07:32:00\n",
            "w.toml:2:13: max_stall takes a string, not a date or time; mend: write max_stall = \"10s\"",
        ),
        (
            "[processes]\nexclude = \"/bin/a\"\n",
            "w.toml:2:11: exclude takes a list of paths, not a string; mend: write exclude = [\"/usr/bin/qemu-nbd\"]",
        ),
        (
            "[sweep]\npaths = \"/logs/**\"\n",
            "w.toml:2:9: paths takes a list of paths, not a string; mend: write paths = [\"/logs/**\"]",
        ),
        (
            "[processes]\nexclude = [\"/bin/a\", 1]\n",
            "w.toml:2:22: exclude takes a string, not an integer; mend: write exclude = [\"/usr/bin/qemu-nbd\"]",
        ),
        (
            "[[rule]]\npath = [\"/a\", \"/b\"]\nmode = \"off\"\n",
            "w.toml:2:8: path takes a string, not a list; mend: write path = \"/data/**\"",
        ),
        ("[rule]\npath = \"/a\"\n", "w.toml:1:1: rule is a table, not a section [[rule]]; mend: write [[rule]]"),
        ("rule = [1]\n", "w.toml:1:9: rule is an integer, not a section [[rule]]; mend: write [[rule]]"),
        (
            "[[memory]]\ntarget = \"80%\"\n",
            "w.toml:1:1: memory is a list, not a section [memory]; mend: write [memory]",
        ),
        ("writes = \"auto\"\n", "w.toml:1:10: writes is a string, not a section [writes]; mend: write [writes]"),
    ]);
}

#[test]
fn bad_values() {
    table(&[
        (
            "[memory]\ntarget = \"0%\"\n",
            "w.toml:2:10: target \"0%\" is not a share of the limit; mend: write a whole number from \"1%\" to \"100%\"",
        ),
        (
            "[memory]\ntarget = \"101%\"\n",
            "w.toml:2:10: target \"101%\" is not a share of the limit; mend: write a whole number from \"1%\" to \"100%\"",
        ),
        (
            "[memory]\ntarget = \"12.5%\"\n",
            "w.toml:2:10: target \"12.5%\" is not a share of the limit; mend: write a whole number from \"1%\" to \"100%\"",
        ),
        (
            "[memory]\ntarget = \"80\"\n",
            "w.toml:2:10: target \"80\" is a size in bytes; mend: write \"80%\" for a share of the limit",
        ),
        (
            "[memory]\ntarget = \"0\"\n",
            "w.toml:2:10: target \"0\" is below 1 MiB; mend: write a share of the limit, as \"80%\", or a size, as \"480Mi\"",
        ),
        (
            "[memory]\ntarget = \"much\"\n",
            "w.toml:2:10: target \"much\" is not a size; mend: write a share of the limit, as \"80%\", or a size, as \"480Mi\"",
        ),
        (
            "[memory]\ntarget = \"600m\"\n",
            "w.toml:2:10: target \"600m\" has no unit of size; mend: write \"600M\" (powers of 1000) or \"600Mi\" (powers of 1024)",
        ),
        (
            "[writes]\nmode = \"allways\"\n",
            "w.toml:2:8: unknown mode \"allways\" (did you mean \"always\"?); mend: write \"always\"",
        ),
        (
            "[writes]\nmode = \"directsync\"\n",
            "w.toml:2:8: unknown mode \"directsync\"; mend: write \"auto\", \"always\", \"observe\" or \"off\"",
        ),
        (
            "[writes]\nwindow = \"512Ki\"\n",
            "w.toml:2:10: window \"512Ki\" is below 1 MiB; mend: write \"1Mi\" or more, or \"auto\"; to leave writes alone, mode = \"off\"",
        ),
        (
            "[writes]\nwindow = \"1MB\"\n",
            "w.toml:2:10: window \"1MB\" is below 1 MiB; mend: write \"1Mi\" or more, or \"auto\"; to leave writes alone, mode = \"off\"",
        ),
        ("[writes]\nwindow = \"16Ei\"\n", "w.toml:2:10: window \"16Ei\" is too large; mend: write less than \"16Ei\""),
        (
            "[writes]\nwindow = \"Auto\"\n",
            "w.toml:2:10: window \"Auto\" is not a size; mend: write \"auto\", or a size, as \"4MiB\"",
        ),
        (
            "[writes]\nmax_stall = \"0s\"\n",
            "w.toml:2:13: max_stall \"0s\" is below 1 ms, which lets every call go; mend: write \"1ms\" or more; to hold nothing back, mode = \"observe\"",
        ),
        (
            "[writes]\nmax_stall = \"10\"\n",
            "w.toml:2:13: max_stall \"10\" is not a time; mend: write a number and a unit, as \"10s\", \"500ms\" or \"2m\"",
        ),
        (
            "[writes]\nmax_stall = \"2M\"\n",
            "w.toml:2:13: max_stall \"2M\" is longer than a day; mend: write \"24h\" or less; \"m\" is minutes, \"M\" is months",
        ),
        (
            "[[rule]]\npath = \"/a\"\nreads = \"dropbehind\"\n",
            "w.toml:3:9: unknown reads \"dropbehind\" (did you mean \"drop-behind\"?); mend: write \"drop-behind\"",
        ),
        (
            "[[rule]]\npath = \"/a\"\nreads = \"keep\"\n",
            "w.toml:3:9: unknown reads \"keep\"; mend: write \"drop-behind\"",
        ),
    ]);
}

#[test]
fn bad_patterns() {
    table(&[
        (
            "[[rule]]\npath = \"\"\nmode = \"off\"\n",
            "w.toml:2:8: path is empty; mend: write an absolute path, as \"/data/**\"",
        ),
        (
            "[[rule]]\npath = \"data/**\"\nmode = \"off\"\n",
            "w.toml:2:8: path \"data/**\" is relative; mend: write it from the root: \"/data/**\"",
        ),
        (
            "[[rule]]\npath = \"./data\"\nmode = \"off\"\n",
            "w.toml:2:8: path \"./data\" is relative; mend: write it from the root, or \"/**/data\" for any of that name",
        ),
        (
            "[[rule]]\npath = \"~/data\"\nmode = \"off\"\n",
            "w.toml:2:8: path \"~/data\" is relative; mend: write it from the root, as \"/data/**\"",
        ),
        (
            "[[rule]]\npath = \"/data/\"\nmode = \"off\"\n",
            "w.toml:2:8: path \"/data/\" ends in a slash, which no path of a file does; mend: write \"/data/**\" for all below it",
        ),
        (
            "[[rule]]\npath = \"/data/../etc\"\nmode = \"off\"\n",
            "w.toml:2:8: path \"/data/../etc\" is not a resolved path, so it can match none; mend: write it without \"//\", \"/./\" and \"/../\"",
        ),
        (
            "[[rule]]\npath = \"/data/{a,b}\"\nmode = \"off\"\n",
            "w.toml:2:8: path \"/data/{a,b}\" holds '{', which is not special here: only ?, * and ** are; mend: write one pattern for each case, or ? where the path really holds this character",
        ),
        (
            "[[rule]]\npath = \"/data/\\u0000\"\nmode = \"off\"\n",
            "w.toml:2:8: path \"/data/\\0\" holds a NUL, which no path does; mend: remove it",
        ),
        (
            "[processes]\nexclude = [\"qemu-nbd\"]\n",
            "w.toml:2:12: exclude \"qemu-nbd\" is relative; mend: write it from the root, or \"/**/qemu-nbd\" for any of that name",
        ),
        (
            "[sweep]\npaths = [\"logs/**\"]\n",
            "w.toml:2:10: paths \"logs/**\" is relative; mend: write it from the root: \"/logs/**\"",
        ),
        (
            "[sweep]\npaths = [\"/**/*.log\"]\n",
            "w.toml:2:10: paths \"/**/*.log\" names no directory; mend: begin with the volume's directory, as \"/logs/**\"",
        ),
        (
            "[sweep]\npaths = [\"/lo*/x\"]\n",
            "w.toml:2:10: paths \"/lo*/x\" names no directory; mend: begin with the volume's directory, as \"/logs/**\"",
        ),
    ]);
    let long = format!("/{}", "é".repeat(120));
    assert_eq!(
        problems(&format!("[[rule]]\npath = {long:?}\nmode = \"off\"\n")),
        "w.toml:2:8: path is 241 bytes long, and at most 240 fit; mend: shorten it with * or **"
    );
}

#[test]
fn rules_without_effect() {
    let two = |first: &str, second: &str| {
        problems(&format!("[[rule]]\npath = {first:?}\nmode = \"off\"\n[[rule]]\npath = {second:?}\nmode = \"auto\"\n"))
    };
    assert_eq!(
        two("/data/**", "/data/**"),
        "w.toml:5:8: path \"/data/**\" can never match: the rule of line 2 takes all of it; mend: make the two rules one"
    );
    assert_eq!(
        two("/**", "/data/**"),
        "w.toml:5:8: path \"/data/**\" can never match: the rule of line 2 takes all of it; mend: move this rule before that one"
    );
    assert_eq!(
        two("/data/*", "/data/*.log"),
        "w.toml:5:8: path \"/data/*.log\" can never match: the rule of line 2 takes all of it; mend: move this rule before that one"
    );
    table(&[
        (
            "[[rule]]\npath = \"/a\"\n",
            "w.toml:1:1: a rule that says nothing but its path; mend: add mode or reads; mode = \"auto\" exempts from later rules",
        ),
        ("[[rule]]\nmode = \"off\"\n", "w.toml:1:1: a rule without a path; mend: add path = \"/data/**\""),
        (
            "[processes]\nexclude = [\"/bin/**\", \"/bin/a\"]\n",
            "w.toml:2:23: exclude \"/bin/a\" adds nothing to \"/bin/**\" before it; mend: remove it",
        ),
        (
            "[sweep]\npaths = [\"/logs/**\", \"/logs/*.log\"]\n",
            "w.toml:2:22: paths \"/logs/*.log\" adds nothing to \"/logs/**\" before it; mend: remove it",
        ),
    ]);
}

#[test]
fn more_than_the_region_holds() {
    let rules: String = (0..65).map(|n| format!("[[rule]]\npath = \"/{n}\"\nmode = \"off\"\n")).collect();
    assert_eq!(problems(&rules), "w.toml:193:1: 65 rules, and at most 64 fit; mend: join rules with * or **");
    let excludes: Vec<String> = (0..33).map(|n| format!("/bin/{n}")).collect();
    assert_eq!(
        problems(&format!("[processes]\nexclude = {excludes:?}\n")),
        "w.toml:2:354: 33 programs to exclude, and at most 32 fit; mend: join them with * or **"
    );
}

#[test]
fn all_problems_are_told_at_once_in_the_files_order() {
    let text = "# é\n[writes]\nwindow = \"4 apples\"\nmode = always\nmax_stal = \"1s\"\n\n[memory]\ntarget = \"0%\"\n";
    assert_eq!(problems(text), [
        "w.toml:3:10: window \"4 apples\" has no unit of size; mend: write one of k, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024)",
        "w.toml:4:8: a value without quotes; mend: write \"always\"",
        "w.toml:5:1: unknown key \"max_stal\" in [writes] (did you mean max_stall?); mend: write max_stall",
        "w.toml:8:10: target \"0%\" is not a share of the limit; mend: write a whole number from \"1%\" to \"100%\"",
    ].join("\n"));
    // columns are characters
    assert_eq!(
        problems("memory = { 'é' = 1, b = 2 }"),
        [
            "w.toml:1:12: unknown key \"é\" in [memory]; mend: remove it; [memory] has target",
            "w.toml:1:21: unknown key \"b\" in [memory]; mend: remove it; [memory] has target",
        ]
        .join("\n")
    );
}

fn unreadable(path: &Path) -> String {
    Workload::load(path).expect_err("an unreadable file").to_string()
}

#[test]
fn files_that_cannot_be_read() {
    let directory = std::env::temp_dir().join(format!("freeboard-config-{}", std::process::id()));
    std::fs::create_dir(&directory).expect("a directory of our own");
    let at = directory.display();
    let absent = unreadable(&directory.join("absent.toml"));
    let a_directory = unreadable(&directory);
    let latin1 = directory.join("latin1.toml");
    std::fs::write(&latin1, b"[writes]\n# caf\xe9\n").expect("latin1.toml");
    let latin1 = unreadable(&latin1);
    let huge = directory.join("huge.toml");
    std::fs::write(&huge, "#".repeat((64 << 10) + 1)).expect("huge.toml");
    let huge = unreadable(&huge);
    std::fs::remove_dir_all(&directory).expect("clean up");

    assert_eq!(
        absent,
        format!("{at}/absent.toml: cannot be read: No such file or directory (os error 2); mend: check the path")
    );
    assert_eq!(a_directory, format!("{at}: cannot be read: Is a directory (os error 21); mend: name a file in it"));
    assert_eq!(latin1, format!("{at}/latin1.toml:2:6: not UTF-8; mend: save the file as UTF-8"));
    assert_eq!(huge, format!("{at}/huge.toml: is larger than 64 KiB; mend: check the path"));
}
