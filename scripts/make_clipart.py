# /// script
# requires-python = ">=3.11"
# dependencies = ["pillow==13.0.0", "numpy==2.4.6"]
# ///
"""Build the embedded data set `clipart` from the pictures of Debian's package openclipart-png.

Run `python scripts/make_clipart.py [SOURCE] [OUTPUT]`. SOURCES says which pictures were picked, by
looking at each of them, for which class; everything else follows from the rules below and needs no earlier
manifest: what cannot be used is skipped, pictures that come out identical are used once, sets of
near-duplicates and whole classes are thinned to a fixed size, and the split keeps variants on one side.

The package used was openclipart-png 1:0.18+dfsg-19. The bytes of the PNG files, and so the SHA-256 in the
manifest, are those of the Pillow named above: another one may compress differently with the same pixels. With
Pillow 11.3 and 12.0, which scale with other rounding, 48 of the 790 pictures differ, by less than half a grey
level on average; choice and split are the same.
"""

import argparse
import csv
import hashlib
import io
import re
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

SIZE, MARGIN = 144, 4
MIN_SIDE, MAX_PIXELS = 64, 40_000_000
PER_CLASS, PER_FAMILY = 90, 6
SPLITS = {"train": 0.70, "val": 0.15, "test": 0.15}
# Two pictures are near-duplicates if their luminance, their outlines or the mean of the two correlate at
# least this much. Chosen by looking at pairs: a coloured drawing and its black-and-white version have
# outlines above 0.9, different drawings rarely above 0.8.
SAME_LUMINANCE, SAME_OUTLINE, SAME_BOTH = 0.95, 0.85, 0.85

# Class, then folders with what to take from each: a name is a file without its .png or, where there is no
# such file, the beginning of several up to an underscore; `*` is the whole folder but for the names behind
# `!`. Left out by eye: scenes, text, brand logos, known characters, photographs of real people, nudity,
# politics, broken pictures, and whatever is not plainly of its class.
SOURCES = {
    "mammal": """
animals: armadillo bat bison sailor seal_sek
animals/birds: contour
animals/fish: bluewhale-md dolphin dolphin_enrique orca
animals/mammals: * !crazy !dolphin_01 !elephant_outline !emule !mhooo !shaezy !skoynk !squeek !toro
animals/mammals/bears: * !sleeping
animals/mammals/big_cats: *
animals/mammals/dogs: *
animals/mammals/horses: cavallo horse_1
animals/mammals/housecats: gatto_cat kitten le sleeping
people/bodypart: fawn olifant
recreation/holiday/easter: *
unsorted: cammello elefante elefantone mucca pecorella""",
    "person": """
computer: teacher
food: chef
people: adult aerobics al angry architetto_francesco baby_anthony bach ballerina beethoveo blacksmiti
  blue_girl bride1 bussiness busy card chibi dancer dancers donna fata fireman_alarm fireman_wedding fitness
  golf groom1 handel happy head1 head11 head12 head13 head14 head2 head3 head4 head5 head6 io kid man01 man02
  man_01 man_02 man_chris man_in manga nonno pace pattinatrice pattinatrici people people_juliane police ppl1
  ppl2 ppl3 ppl4 ppls rich roller runner sailor signore signorina sport sub water_fight wedding_couple woman01
  woman02 woman_01 woman_chemist woman_doctor woman_fashion woman_nurse woman_police woman_reading
people/stickmen: stickyman
unsorted: Traslocatore01 Traslocatore02 Traslocatore03 carpentiere1 carpentiere2 carpentiere3 imbianchino
  principessa principessa_bn ragazza ragazzo signorina signorinacappello signorinafoulard trekking""",
    "plant": """
plants: acorn albero arbre bamboo cactus cacuts daffodil fall_coloured island leaf olivier palmtree reed
  shamrock tree
plants/flowers: * !fiore !magnolia !mirjam
plants/trees: christmas_tree fern tree
plants/trees/evergreen: *
recreation/holiday/christmas: evergreen wreath xmas
unsorted: foglie giardinaggio rosa1 rosa2 rose""",
    "fruit": """
food: apple
food/fruit: * !apple_juice !candied !champignon !eris !gumnut !juice !kallisti-grenade !lime_half_jarno !pie
  !slate-apple !straw !tree !turkey""",
    "sweets": """
food: cake candied
food/breads_and_carbs: muffin1 muffin1_bw muffin2 muffin2_bw muffin3 muffin
food/desserts: *""",
    "meal": """
food: bowl_of burrito french fries lasagna menu_example1 menu_example2 menu_example3 menu_example4
  menu_example5 menu_example onion perogies pizza_4 pizza_cheese pizza_cheese_bw pizza_pepperoni
  pizza_pepperoni_bw pizza_rectangular pizza_slice_fco. sandwich soup spaghetti submarine thanksgiving
food/breads_and_carbs: bread bread_01 croissant garlic hash potato_chips potato_chips_bw pretzel
food/dairy: cheese_01
food/fruit: turkey
food/meats_and_eggs: * !fuoco
unsorted: Cornetto Tacchino tramezzino""",
    "vehicle": """
computer: browser
people: fire
recreation/toys: kiddy
transportation: ambulans autos bicycle big bike blazer bmw bus1 bus2 bus_01 car dodge fire formula hummer m1
  motorcycle old_car old_truck pallone plane road skoda small sportcar tramway truck
transportation/boating: boat sailboat_illustration sailing_kids
transportation/vehicles: * !crossroads !curve !cycle !departing !lighthouse !parking !quay !shelby !sledge
  !the !toy !wing
transportation/vehicles/hummers: *
unsorted: Montacarichi ambulanza betoniera caterpillar""",
    "electronics": """
computer: 8port_hub access alcatel_oxo cleanpalm computer crt doublesight etiquette_laptop etiquette_printer
  etiquette_scanner green joypad mouse_the notebook1 pale pc_speaker pda phone ras server set slim
  switch_cisco_nico switch_cisco_nicola2 switch_hp_stack tft thin tv webcam
computer/hardware: * !8port_switch !digital-camera !firewall !laptop_01 !laptop_02 !rhythmbox !router !schermo
  !various
electronics: camcorder camera casco cinepresa macchina telecamera zinf
office: handphone slim
office/telephone: * !numero !telephone_lutte !telephone_sauvetage
recreation/toys: gameboy""",
    "stationery": """
education: colori crayon note paper paperclip pen pencil scissors scissors_02 stamp stappler
office: addressed appunti ballpoint blue carta cartella clipboard clips dossier envelop envelope eraser fancy
  feather folder1 folder2 folder glossy lettera mail1 mars note_with paper1 paper2 paper3 paper4 paperface1
  paperface2 papers parchment pen pencil pin pinzatrice puntine scissors_forbici scotch tabella
signs_and_symbols: page pen1 sakset1 sakset2
unsorted: blocco_notes""",
    "sign": """
signs_and_symbols: BasseTemperature ChampMagnetiqueImportant ChargesSuspendues ChuteDenivellation
  DangerElectrique DangerGeneral MatieresComburantes MatieresCorrosives MatieresExplosives
  MatieresInflammables MatieresNocivesIrritantes MatieresToxiques RadiationsIonisantes RadiationsNonIonisantes
  RayonnementLaser RisqueBiologique Trebuchement VehiculesManutention charge civiere comburant corrosif danger
  defense direction douche eau echelle entree extincteur hot hydrant interdiction keep lance low magnetic ne
  no no_entrance no_smoking_joel no_smoking_sign nosmoke obligation premiers protection radiations rayonnement
  rincage risque_biologique sortie telephone trebuchement tres triangle vehicules
transportation/roadsigns: * !ampelfrau !ampelmaennchen !bus_opposite !bus_symbol !buses !nws !route !stop
  !trams !yield""",
}

# Variants that were seen and that no rule joins, by the beginnings of their names.
SIBLINGS = (
    ("monkey_head", "sailor_monkey"),
    ("simple_stylized_wolf", "stylized_wolf"),
    ("fried_egg",),
    ("woman_doctor", "woman_nurse", "woman_police"),
    ("keep_tidy",),
    ("an_apple", "applf"),
    ("parchment",),
    ("shamrock",),
    ("lightly_decorated", "simple_evergreen", "christmas_tree"),
    ("ppl",),
    ("1989_chevrolet", "_chevrolet"),
    ("apple_bitten", "apple_with_worm"),
    ("banana",),
)


def picked(root: Path, table: str) -> list[str]:
    """Return the sources that one entry of SOURCES names, sorted, as paths below `root`."""
    found: set[str] = set()
    for folder, names in re.findall(r"^(\S+):((?:.|\n )*)", table, flags=re.MULTILINE):
        stems = {path.stem for path in (root / folder).glob("*.png")}
        chosen: set[str] = set()
        for name in names.split():
            bare = name.lstrip("!")
            if bare == "*":
                hits = stems
            else:
                hits = {bare} if bare in stems else {stem for stem in stems if stem.startswith(bare + "_")}
            if not hits:
                raise SystemExit(f"{folder}: nothing is called {bare}; is this openclipart-png 0.18?")
            chosen = chosen - hits if name.startswith("!") else chosen | hits
        found |= {f"{folder}/{stem}.png" for stem in chosen}
    return sorted(found)


def render(path: Path) -> tuple[Image.Image, dict[str, str]] | None:
    """Return a source trimmed to its content on a white square, with its title and author, if it is usable.

    Broken, blank, very small and enormous pictures are not.
    """
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            source = Image.open(path)
        with source:
            # Asked before decoding: the largest picture of the package has 623 million pixels.
            if source.width * source.height > MAX_PIXELS:
                return None
            picture = source.convert("RGBA")
            text = {key: " ".join(str(source.info.get(key, "")).split()) for key in ("Title", "Author")}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture).convert("RGB")
    ink = np.asarray(flat).min(axis=2) < 245
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if not rows.size or max(np.ptp(rows), np.ptp(columns)) + 1 < MIN_SIDE:
        return None
    content = flat.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    scale = (SIZE - 2 * MARGIN) / max(content.size)
    width, height = (max(1, round(side * scale)) for side in content.size)
    content = content.resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (SIZE, SIZE), "white")
    square.paste(content, ((SIZE - width) // 2, (SIZE - height) // 2))
    return square.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE), text


def fingerprint(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the luminance (16 x 16) and the outlines (24 x 24) of a picture, each of mean 0 and length 1.

    An outline is a change in any colour channel, cut off early so that strong and weak edges count alike: it
    stays the same when a drawing is recoloured or turned to grey or to lines.
    """
    colours = np.asarray(image.convert("RGB"), dtype=np.float32)
    across = np.abs(np.diff(colours, axis=1)).max(axis=2)[:-1]
    down = np.abs(np.diff(colours, axis=0)).max(axis=2)[:, :-1]
    luminance = colours @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    parts = []
    for plane, side in (luminance, 16), (np.fmin(np.fmax(across, down), 48), 24):
        small = Image.fromarray(plane).resize((side, side), Image.Resampling.BOX)
        values = np.asarray(small, dtype=np.float64)
        centred = values - values.mean()
        parts.append(centred / max(float(np.linalg.norm(centred)), 1e-9))
    return parts[0], parts[1]


def near_duplicates(prints: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return a boolean matrix: which pictures are near-duplicates of which, mirror images included."""
    near = np.zeros((len(prints), len(prints)), dtype=bool)
    for step in (1, -1):
        luminance, outlines = (
            planes.reshape(len(prints), -1) @ planes[:, :, ::step].reshape(len(prints), -1).T
            for planes in (np.stack([each[part] for each in prints]) for part in (0, 1))
        )
        near |= (luminance >= SAME_LUMINANCE) | (outlines >= SAME_OUTLINE)
        near |= (luminance + outlines) / 2 >= SAME_BOTH
    return near | near.T


def series(source: str) -> str:
    """Return what numbered and black-and-white variants of one drawing have in common: the bare name."""
    stem = source.rsplit("/", 1)[-1].removesuffix(".png").lower()
    for beginnings in SIBLINGS:
        if stem.startswith(beginnings):
            return beginnings[0]
    return "_".join(word for word in re.split(r"_+|\d+[a-z]?(?=_|$)|\d+", stem) if word not in ("", "bw"))


def families(sources: list[str], near: np.ndarray, numbered: bool) -> list[int]:
    """Return the family of each source, joining near-duplicates and, if `numbered`, series of variants."""
    parent = list(range(len(sources)))

    def top(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    first = {series(source): index for index, source in reversed(list(enumerate(sources)))}
    pairs = list(zip(*np.nonzero(np.triu(near, 1)), strict=True))
    if numbered:
        pairs += [(first[series(source)], index) for index, source in enumerate(sources)]
    for one, other in pairs:
        parent[top(other)] = top(one)
    return [top(index) for index in range(len(sources))]


def lot(source: str) -> str:
    """Return a key that shuffles sources the same way everywhere."""
    return hashlib.sha256(source.encode()).hexdigest()


def assign_splits(classes: list[str], sources: list[str], family: list[int]) -> list[str]:
    """Return the split of each picture: whole families, largest first, each to the split that lacks most.

    Large families thus go to train, while val and test are made of drawings that differ from each other.
    """
    sizes = Counter(classes)
    need = {(name, split): share * sizes[name] for name in sizes for split, share in SPLITS.items()}
    members = defaultdict(list)
    for index, each in enumerate(family):
        members[each].append(index)
    result = [""] * len(sources)
    for group in sorted(members.values(), key=lambda group: (-len(group), lot(sources[group[0]]))):
        split = max(SPLITS, key=lambda split: sum(need[classes[index], split] for index in group))
        for index in group:
            result[index] = split
            need[classes[index], split] -= 1
    return result


def build(root: Path, output: Path) -> None:
    """Write the pictures and the manifest of the whole set below `output`."""
    found: dict[bytes, tuple[str, str, Image.Image, dict[str, str]]] = {}
    for name, table in SOURCES.items():
        for source in picked(root, table):
            if usable := render(root / source):
                found.setdefault(usable[0].convert("RGB").tobytes(), (name, source, *usable))
    entries = sorted(found.values(), key=lambda entry: lot(entry[1]))
    near = near_duplicates([fingerprint(entry[2]) for entry in entries])
    taken: Counter[str | int] = Counter()
    keep: list[int] = []
    for index, kin in enumerate(families([entry[1] for entry in entries], near, numbered=False)):
        name = entries[index][0]
        if taken[name] < PER_CLASS and taken[kin] < PER_FAMILY:
            taken.update((name, kin))
            keep.append(index)
    entries = [entries[index] for index in keep]
    sources = [entry[1] for entry in entries]
    family = families(sources, near[np.ix_(keep, keep)], numbered=True)
    splits = assign_splits([entry[0] for entry in entries], sources, family)
    rows: list[dict[str, str]] = []
    for (name, source, image, text), split, kin in zip(entries, splits, family, strict=True):
        stem = re.sub(r"[^a-z0-9]+", "_", Path(source).stem.lower()).strip("_")
        while any(row["file"] == f"{name}/{stem}.png" for row in rows):
            stem += "_b"
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        path = output / name / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        rows.append(
            {
                "file": f"{name}/{stem}.png",
                "class": name,
                "split": split,
                "family": min(one for one, other in zip(sources, family, strict=True) if other == kin),
                "source": source,
                "title": text["Title"],
                "author": text["Author"],
                "sha256": digest,
            }
        )
    rows.sort(key=lambda row: row["file"])
    with (output / "manifest.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for name in SOURCES:
        counts = Counter(row["split"] for row in rows if row["class"] == name)
        print(f"{name:12}", sum(counts.values()), *(f"{split} {counts[split]}" for split in SPLITS))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, default=Path("/usr/share/openclipart/png"))
    home = Path(__file__).resolve().parent.parent
    parser.add_argument("output", nargs="?", type=Path, default=home / "src/finetune/assets/clipart")
    arguments = parser.parse_args()
    build(arguments.source, arguments.output)
