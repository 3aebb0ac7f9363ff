"""The words of the worlds: single-token names and things, and the syllables of names in two tokens."""

# ruff: noqa: SIM905 - a word list reads best as words

PERSONS = tuple(
    "Mara Ivo Nils Ada Boris Clara Dora Edgar Fiona Georg Hanna Igor Julia Karl Lena Milo Nora Oskar Paula Quentin "
    "Rosa Simon Tessa Ursula Viktor Wanda Xenia Yara Zeno Alma Bruno Celia Dario Elsa Felix Greta Hugo Irma Jonas Kira "
    "Leon Marta Nadia Olaf Petra Ralf Sonja Theo Uma Vera Willem Amir Bianca Cyril Daphne Emil Freda Gustav Helga Ilse "
    "Jakob Katja Lukas Mona Niko Otto Pia Rafael Silvia Timo Vasco Wilma Anton Berta Carlo Delia Erik Flora Gerda "
    "Henri Ines Joel Klara Lars Monika Norbert Odile Pascal Renata Stefan Thelma Ugo Vito Walter Yvonne Zita".split()
)
"""Ninety-six given names, each one token of the tokenizer when it follows a space."""

PLACES = tuple(
    "kitchen garden cellar attic library stable chapel harbor market tower bakery station museum theater office "
    "workshop courtyard orchard pantry studio balcony barn bridge castle church clinic college factory forest gallery "
    "garage hall hotel hut island jungle laundry meadow mill monastery palace park pavilion pharmacy port quarry ranch "
    "school shed ship shop square stadium street tavern temple tent terrace valley village vineyard yard zoo "
    "lobby".split()
)
"""Places of one token."""

OBJECTS = tuple(
    "key lamp rope coin map letter box basket bottle candle clock crown cup dagger diary drum fan flag flute hammer "
    "harp hat helmet jar kettle knife ladder lantern mask medal mirror needle notebook painting parcel pearl pencil "
    "pipe plate pot ring robe ruby saddle saw scarf scroll shield shovel spoon stamp statue stool sword table tablet "
    "ticket trumpet umbrella vase violin wallet whistle wheel".split()
)
"""Things of one token."""

NOUNS = tuple("crates barrels sacks apples bricks chairs stones books tiles eggs shells ropes".split())
"""Plural nouns that are counted."""

PERSON_SYLLABLES = (
    tuple("Bel Dov Kav Tov Vel Zab Lub Fiv Gav Hob Jub Mir Nub Pov Rud Sev Tam Vob Wib Yob Zed Cob Dav Eb".split()),
    tuple("mik van dra gus tik bert lok nash pek rin sam ton vik wen zak hild gard mund stan lin".split()),
)
"""First and second halves of person names of two tokens."""

PLACE_SYLLABLES = (
    tuple("Tarn Oak Ash Mill Brook Wolf Red Mist Black High North South Deer Crow Elm Fox Rock Gold".split()),
    tuple("holm ford wick dale mere bury gate moor field cliff haven thorpe stead combe".split()),
)
"""First and second halves of place names of two tokens."""

QUOTE_WORDS = (
    tuple("old new small heavy dark quiet broken green cold long".split()),
    tuple("door river road window roof horse boat wall song storm".split()),
    tuple("is was looks seems".split()),
    tuple("very too almost never always rather".split()),
    tuple("wet slow near loud open far safe warm empty late".split()),
)
"""What people say: `the {0} {1} {2} {3} {4}`."""

ORDINALS = ("first", "second", "third", "fourth", "fifth")
