"""Lists of common English words by kind, for the task `sentences`.

The lists were written for this package. A word is in one of `NOUNS`, `VERBS` and `ADJECTIVES` at most.
"""

from __future__ import annotations


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS: tuple[str, ...] = _listed(
    """
    apple arrow bakery balloon basket beach bell bench bicycle bird blanket boat book bottle box bread bridge brother
    brush bucket butter button cake camera candle carpet castle cat ceiling chair child church city clock cloud coat
    coffee coin corner cottage cousin cow crowd cup curtain dancer daughter desert desk diamond dinner doctor door
    dragon drawer dream dress driver drum duck elephant engine family farmer feather fence field finger fire fish
    flag floor flower forest fork fox friend frog garden gate ghost giant glass glove goat gold grandmother grass
    guitar hammer harbor hat hill honey horse hospital hotel house island jacket judge kettle key king kitchen kitten
    knife ladder lake lamp leaf lemon letter library lion lunch machine magician map market meadow mirror money monkey
    moon morning mother mountain mouse museum music neighbor nest notebook nurse ocean office onion orange owl painter
    palace paper parrot path pencil piano picture pilot pizza planet pocket poem poet potato queen rabbit radio rain
    ribbon ring river road robot roof room rope rose sailor salt sand sandwich scarf school scientist shadow sheep
    ship shoe shop silence silver singer sister sky snow soap soldier song soup spider spoon star station stone storm
    story stranger street student sugar suitcase summer sun table tailor tea teacher telescope tent theater thunder
    ticket tiger tower town toy train treasure tree truck tunnel turtle umbrella uncle valley village violin voice
    wall water whale wheel window winter witch wolf
    """
)
"""Nouns in the singular."""

VERBS: tuple[str, ...] = _listed(
    """
    answered arrived asked became borrowed bought broke brought built carried caught changed cleaned climbed closed
    collected cooked counted crossed cried danced decided discovered drank dreamed dropped ate entered explained
    fell felt filled finished fixed flew followed forgot found gave grew heard helped hid hoped hugged invited
    jumped kept kicked knew laughed learned left listened lost loved made met moved needed noticed offered opened
    ordered packed painted played pointed promised pulled pushed ran reached remembered repaired returned rode
    sailed sang sat saved saw searched shared shouted showed slept smelled smiled sold spoke stayed stood stopped
    studied swam taught thought threw told took touched traveled tried turned visited waited walked wanted warned
    washed watched whispered wondered wore worked wrote
    """
)
"""Verbs in the past tense."""

ADJECTIVES: tuple[str, ...] = _listed(
    """
    afraid ancient angry beautiful big bitter black blue bold brave bright broken brown busy calm careful cheap clean
    clever cold colorful crowded curious dangerous dark deep delicious dirty dry dusty early easy empty expensive
    famous fast foolish fragile fresh friendly funny gentle golden gray great green happy heavy hidden high hot huge
    hungry jealous kind large late lazy light little lonely long loud lucky magical modern muddy mysterious narrow new
    nervous noisy old patient peaceful perfect pink polite poor proud purple quick quiet rare red rich round rusty sad
    secret serious shallow sharp shiny short shy silent simple sleepy slow small smooth soft sour steep strange strong
    sweet tall thin thirsty tiny tired warm weak wet white wide wild wise wonderful wooden worried yellow young
    """
)
"""Adjectives."""

STARTS: tuple[str, ...] = _listed(
    "After Although Because Before During Every From If In My On Our Since Some The This Under We When While"
)
"""Words with which a sentence can be asked to begin."""

FUNCTION_WORDS: frozenset[str] = frozenset(
    _listed(
        """
    a about above across after again against all along already also although always am among an and another any are
    around as at away back be because been before behind being below beneath beside between both but by can could did do
    does down during each either else ever every few for from had has have he her here hers him his how i if in inside
    into is it its just many may me might mine more most much must my near neither never no nor not now of off often
    on once one only onto or other our ours out outside over own shall she should since so some sometimes soon still
    such than that the their theirs them then there these they this those though through to today together too toward
    towards under until up upon us very was we were what when where whether which while who whom whose why will with
    within without would yet you your yours don't didn't can't couldn't isn't wasn't it's i'm that's won't wouldn't
    """
    )
)
"""Words that carry grammar: articles, pronouns, prepositions, conjunctions, auxiliaries and the like."""

ARTICLES: frozenset[str] = frozenset({"a", "an", "the"})
"""The articles. In an English sentence a noun follows them, or a word that describes it."""

ABOUT_THE_TASK: frozenset[str] = frozenset(
    _listed("contain contains containing include includes including mention mentions sentence sentences word words")
)
"""Words of a sentence that speaks of itself, such as "This sentence contains the words lamp and river"."""

AFTER_ARTICLE: frozenset[str] = frozenset(
    _listed("above few inside just many more most much now often once one only other outside own still then very")
)
"""Function words that can follow an article: "the other", "a very old", "the only"."""
