"""A dozen prompt templates in the grammar of `dynamicprompts`, as people write them for large sets of images.

``{a|b}`` picks one, ``{3::a|b}`` picks ``a`` three times in four, ``{2$$a|b|c}`` picks two, ``__name__`` one of
WILDCARDS. Each template has more than ten million expansions, so that a million distinct prompts are a small part.
"""

from __future__ import annotations

WILDCARDS: dict[str, str] = {
    "colour": (
        "red|crimson|orange|amber|yellow|olive green|emerald green|teal|turquoise|sky blue|navy blue|violet|magenta|"
        "pink|beige|brown|black|white|silver|gold"
    ),
    "light": (
        "soft window light|golden hour|blue hour|harsh noon sun|overcast sky|candlelight|neon light|studio lighting|"
        "rim lighting|moonlight|volumetric fog|dappled shade|backlit|spotlight"
    ),
    "shot": (
        "close-up|extreme close-up|medium shot|wide shot|aerial view|low angle shot|eye level shot|over the shoulder|"
        "isometric view|top-down view|dutch angle|fisheye view"
    ),
    "lens": "24mm|35mm|50mm f/1.4|85mm|100mm macro|200mm telephoto|tilt-shift lens|pinhole camera",
    "style": (
        "oil painting|watercolor|gouache|charcoal drawing|pen and ink|woodcut print|linocut|pixel art|low poly render|"
        "claymation|paper cut-out|stained glass|art deco poster|art nouveau|ukiyo-e|impressionism|cubism|surrealism|"
        "pop art|vaporwave|concept art|flat vector illustration|anime key visual|comic book panel|3d render"
    ),
    "mood": (
        "serene|melancholic|joyful|mysterious|tense|nostalgic|whimsical|epic|lonely|cosy|eerie|triumphant|dreamlike|"
        "playful|solemn|chaotic"
    ),
    "weather": (
        "clear sky|light rain|heavy storm|thick fog|falling snow|drifting mist|strong wind|distant lightning|a rainbow|"
        "scattered clouds|heat haze|northern lights"
    ),
    "season": "early spring|late spring|midsummer|early autumn|late autumn|deep winter",
    "place": (
        "in a quiet village|in a crowded market|on a mountain pass|by a frozen lake|in a bamboo forest|in a desert|"
        "on a rooftop in Tokyo|in a Venetian canal|on a tropical beach|in an abandoned factory|in a library|"
        "in a greenhouse|on a space station|under the sea|in a medieval castle|at a train station|in a neon alley|"
        "on a vineyard hill|in a salt flat|in a subway car"
    ),
    "animal": (
        "red fox|snow leopard|barn owl|hummingbird|sea turtle|octopus|grey wolf|brown bear|koala|giraffe|elephant calf|"
        "arctic hare|golden retriever|tabby cat|siamese cat|border collie|clydesdale horse|poison dart frog|chameleon|"
        "monarch butterfly|praying mantis|emperor penguin|pelican|bald eagle|hedgehog|otter|seahorse|manta ray|lynx|"
        "red panda|sloth|meerkat|peacock|flamingo|bison|alpaca"
    ),
    "product": (
        "wireless headphones|ceramic coffee mug|leather backpack|running shoe|mechanical watch|perfume bottle|"
        "desk lamp|water bottle|electric kettle|bluetooth speaker|lipstick|face cream jar|chef's knife|"
        "office chair|sunglasses|camping tent|yoga mat|vinyl record player|wool scarf|scented candle|"
        "wooden toy train|mountain bike helmet"
    ),
    "material": (
        "brushed steel|oak wood|walnut wood|frosted glass|matte plastic|polished marble|concrete|linen|velvet|"
        "hammered copper|bamboo|terracotta|carbon fibre|brass"
    ),
    "person": (
        "an old fisherman|a young violinist|a ballet dancer|a firefighter|a street vendor|a monk|a boxer|a botanist|"
        "a grandmother|a teenage skater|a jazz singer|a blacksmith|an astronaut|a chess player|a nurse|a shepherd|"
        "a tattoo artist|a bride|a marathon runner|a schoolboy|a pilot|a potter|a geisha|a carpenter"
    ),
    "dish": (
        "ramen|sushi platter|margherita pizza|beef burger|pad thai|paella|croissant|blueberry pancakes|chocolate cake|"
        "greek salad|tacos al pastor|dumplings|apple pie|cheese board|tiramisu|tomato soup|roast chicken|falafel wrap|"
        "lobster roll|mango sticky rice|shakshuka|macarons"
    ),
    "building": (
        "cathedral|lighthouse|library|train station|opera house|skyscraper|farmhouse|temple|museum|bridge|water tower|"
        "treehouse|monastery|stadium|windmill|villa|greenhouse|observatory|parking garage|chapel"
    ),
    "era": (
        "gothic|baroque|victorian|art deco|brutalist|bauhaus|mid-century modern|futuristic|neoclassical|moorish|"
        "japanese minimalist|steampunk|postmodern|deconstructivist"
    ),
    "garment": (
        "trench coat|evening gown|denim jacket|kimono|pleated skirt|three-piece suit|wool sweater|sari|leather boots|"
        "silk blouse|puffer jacket|cocktail dress|linen shirt|cargo trousers|turtleneck|wedding dress"
    ),
    "vehicle": (
        "vintage convertible|pickup truck|motorcycle|city tram|steam locomotive|sailing yacht|biplane|hot air balloon|"
        "rally car|tractor|submarine|hovercraft|bicycle|camper van|fire engine|spaceship|cargo ship|helicopter"
    ),
    "creature": (
        "goblin|dragon whelp|stone golem|forest spirit|skeleton knight|slime|harpy|ice giant|mushroom folk|imp|griffin|"
        "lava hound|sea serpent|clockwork spider|ghost pirate|werewolf"
    ),
    "item": (
        "longsword|healing potion|round shield|spellbook|crossbow|ring of power|treasure chest|magic staff|dagger|"
        "battle axe|lantern|scroll|amulet|war hammer|crown|quiver of arrows|iron key|gemstone"
    ),
    "icon": (
        "calendar|shopping cart|envelope|magnifying glass|gear|heart|bell|camera|cloud|padlock|map pin|trash can|"
        "house|music note|bar chart|battery|bicycle|leaf|rocket|umbrella|coffee cup|globe"
    ),
    "event": (
        "jazz festival|book fair|science expo|film night|marathon|farmers market|design conference|poetry slam|"
        "charity gala|chess tournament|rock concert|food truck rally|winter carnival|museum opening"
    ),
    "hero": (
        "a brave mouse|a shy dragon|two sisters|a lost robot|a clever crow|a little whale|an old bear|a paper boat|"
        "a sleepy moon|a snow rabbit|a boy with a kite|a girl and her goat|a family of ducks|a tiny gardener"
    ),
    "terrain": (
        "jagged mountains|rolling hills|a river delta|sand dunes|a glacier|a canyon|terraced rice fields|"
        "a volcanic island|a mangrove swamp|a lavender field|a waterfall|a pine forest|sea cliffs|a savanna|a peat bog|"
        "a coral atoll"
    ),
}

TEMPLATES: dict[str, str] = {
    "products": (
        "{5::product photo|2::advertising shot|lifestyle photo} of a __colour__ __product__ {on|beside|in front of} "
        "__material__, __light__, {white background|__colour__ gradient background|__place__}, __lens__"
        "{|, water droplets|, floating|, long shadow}"
    ),
    "animals": (
        "{3::a photo|a wildlife photograph|a __style__} of {a|a sleeping|a running|a curious|a baby|an old|a wet} "
        "__animal__ __place__, __weather__, __season__, __shot__{|, __lens__}"
    ),
    "game assets": (
        "game asset, {2::__item__|__creature__} {made of __material__|glowing __colour__|with __colour__ runes|"
        "covered in moss}, {pixel art|hand-painted|low poly|cel shaded|voxel}, {front view|side view|isometric view}, "
        "{plain|__colour__|transparent} background, {common|rare|epic|legendary} {tier|loot}, __mood__"
    ),
    "portraits": (
        "portrait of __person__, {looking at the camera|looking away|laughing|eyes closed|deep in thought}, wearing a "
        "__colour__ __garment__, __place__, __light__, {4::photograph, __lens__|__style__}, __mood__"
    ),
    "landscapes": (
        "__mood__ landscape with __terrain__, __weather__, __season__, __light__, {__shot__|panorama}, "
        "{2::photograph|__style__}{|, a lone tree|, a winding road|, a small cabin|, birds in flight|, __animal__}"
    ),
    "food": (
        "{overhead|45 degree|close-up|macro} photo of __dish__ on a __colour__ __material__ plate, "
        "{2$$, $$fresh herbs|lemon slices|scattered crumbs|steam|a linen napkin|chopsticks|red wine|spices}, "
        "__light__, {rustic|minimal|fine dining|street food} styling"
    ),
    "architecture": (
        "{exterior|interior|aerial view|elevation drawing|architectural model} of a __era__ __building__ in "
        "__material__ and __material__, __terrain__ behind, __weather__, __light__, {photograph|render|__style__}"
    ),
    "fashion": (
        "fashion {editorial|lookbook|runway photo|illustration}, "
        "{__person__|a tall model|a curvy model|an older model} in "
        "a __colour__ __garment__ and a __colour__ __garment__, {silk|tweed|denim|lace|velvet} details, __place__, "
        "__light__"
    ),
    "vehicles": (
        "a {rusty|shining|muddy|snow-covered|futuristic|toy} __colour__ __vehicle__ __place__, __weather__, __shot__, "
        "{3::cinematic photo|__style__|blueprint}, __mood__{|, motion blur|, reflections|, smoke trails}"
    ),
    "icons": (
        "{app icon|line icon|sticker|emoji|enamel pin|logo} of a __icon__ {and a __icon__|with a __colour__ outline|}, "
        "__colour__ and __colour__ palette, {flat|glossy|gradient|hand-drawn|isometric|embossed}, "
        "{rounded square|circle|no} frame, __mood__ style"
    ),
    "posters": (
        "{vintage|minimalist|psychedelic|swiss style|screen printed} poster for a __event__ __place__, featuring "
        "{a __animal__|a __vehicle__|a __building__|a __item__}, __colour__ and __colour__, {bold|serif|hand-lettered} "
        "type, __mood__"
    ),
    "books": (
        "children's book illustration, __hero__ {finds|loses|builds|follows|is afraid of|dreams of} {a __item__|"
        "a __animal__|a __vehicle__|a __icon__} __place__, __season__, __style__, __mood__, __colour__ tones"
    ),
}
