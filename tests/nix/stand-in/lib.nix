# As much of nixpkgs' lib as this repository's flake and module use, for machines without nixpkgs. Definitions are merged as
# the module system merges them: conditions are pushed down, so that a module may ask for options beside those that it sets.
let
  isPlain = value: builtins.isAttrs value && !(value ? _type) && !(value ? outPath);
  isA = type: value: builtins.isAttrs value && value._type or null == type;

  # Attribute sets with conditions at their leaves, and values.
  expand = value:
    if isA "merge" value then builtins.concatMap expand value.contents
    else if !(isA "if" value) then [ value ]
    else if isA "merge" value.content
    then builtins.concatMap (inner: expand (lib.mkIf value.condition inner)) value.content.contents
    else if isA "if" value.content
    then expand (lib.mkIf (value.condition && value.content.condition) value.content.content)
    else if isPlain value.content
    then [ (builtins.mapAttrs (_: inner: lib.mkIf value.condition inner) value.content) ]
    else if value.condition then [ value.content ] else [ ];

  # Of definitions as expanded, those that hold.
  settled = value:
    if isA "merge" value then builtins.concatMap settled value.contents
    else if isA "if" value then (if value.condition then settled value.content else [ ])
    else [ value ];

  combine = where: values:
    let first = builtins.head values; in
    if builtins.length values == 1 then first
    else if builtins.all builtins.isList values then builtins.concatLists values
    else if builtins.all isPlain values then builtins.foldl' (a: b: a // b) { } values
    else if builtins.all (value: value == first) values then first
    else throw "${where} is defined twice";

  optionValue = where: option: definitions:
    let
      values = builtins.concatMap settled definitions;
      value =
        if values != [ ] then combine where values
        else option.default or (throw "${where} is used but not defined");
    in
    option.type.finish where value;

  merge = where: options: definitions:
    if isA "option" options then optionValue where options definitions
    else
      let
        parts = builtins.concatMap expand definitions;
        sets = builtins.filter isPlain parts;
        names = builtins.attrNames (builtins.foldl' (a: b: a // b) options sets);
        inner = name: merge "${where}.${name}" (options.${name} or { })
          (builtins.concatMap (set: if set ? ${name} then [ set.${name} ] else [ ]) sets);
      in
      if parts == [ ] && options == { } then null
      else if builtins.all isPlain parts then builtins.listToAttrs (map (name: { inherit name; value = inner name; }) names)
      else combine where parts;

  type = what: check: {
    finish = where: value: if check value then value else throw "${where} is not ${what}";
    inherit check;
  };

  lib = {
    evalModules = { modules, specialArgs ? { } }:
      let
        load = module: if builtins.isPath module then import module else module;
        call = module: let loaded = load module; in if builtins.isFunction loaded then loaded ({ inherit config lib; } // specialArgs) else loaded;
        all = map call modules;
        # A module without options is all configuration.
        configOf = module: module.config or (builtins.removeAttrs module [ "options" "imports" ]);
        options = builtins.foldl' (a: b: a // (b.options or { })) { } all;
        config = merge "config" options (map configOf all);
      in
      { inherit config options; };

    mkOption = option: option // { _type = "option"; };
    mkEnableOption = description: lib.mkOption { inherit description; type = lib.types.bool; default = false; };
    mkIf = condition: content: { _type = "if"; inherit condition content; };
    mkMerge = contents: { _type = "merge"; inherit contents; };

    types = {
      bool = type "a boolean" builtins.isBool;
      str = type "a string" builtins.isString;
      port = type "a port" (value: builtins.isInt value && value >= 0 && value < 65536);
      ints.positive = type "a positive number" (value: builtins.isInt value && value > 0);
      package = type "a package" (value: value ? outPath);
      nullOr = of: { finish = where: value: if value == null then null else of.finish where value; };
      listOf = of: { finish = where: map (of.finish where); };
      attrsOf = of: { finish = where: builtins.mapAttrs (name: (of.named or (_: of) name).finish "${where}.${name}"); };
      submodule = module: lib.types.submodule' module "" // { named = lib.types.submodule' module; };
      submodule' = module: name: {
        finish = where: value:
          let
            called = if builtins.isFunction module then module { inherit name; } else module;
          in
          if called ? freeformType then called.freeformType.finish where value
          else merge where called.options [ value ];
      };
    };

    literalExpression = text: text;
    optional = condition: value: if condition then [ value ] else [ ];
    optionalAttrs = condition: value: if condition then value else { };
    optionalString = condition: value: if condition then value else "";
    imap0 = f: list: builtins.genList (n: f n (builtins.elemAt list n)) (builtins.length list);
    last = list: builtins.elemAt list (builtins.length list - 1);
    splitString = separator: text:
      builtins.filter builtins.isString (builtins.split (if separator == "." then "[.]" else separator) text);
    toInt = builtins.fromJSON;
    concatLines = lines: builtins.concatStringsSep "" (map (line: line + "\n") lines);
    concatMapStrings = f: list: builtins.concatStringsSep "" (map f list);
    inherit (builtins) concatStringsSep;
    filterAttrs = keep: set: builtins.removeAttrs set (builtins.filter (name: !keep name set.${name}) (builtins.attrNames set));
    genAttrs = names: f: builtins.listToAttrs (map (name: { inherit name; value = f name; }) names);
    mapAttrs' = f: set: builtins.listToAttrs (map (name: f name set.${name}) (builtins.attrNames set));
    nameValuePair = name: value: { inherit name value; };
    getExe = package: "${package}/bin/${package.meta.mainProgram or package.pname or package.name}";
    fileContents = builtins.readFile;
    cleanSource = path: path;
    licenses.asl20 = "Apache-2.0";
  };
in
lib
